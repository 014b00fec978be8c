"""`make bench` in tiny sizes: all rows run, and the page gets its table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import page
from bench.__main__ import ROWS
from bench.timer import Line, Setting

PROJECT = Path(__file__).parents[2]


@pytest.mark.timeout(600)  # 20 seconds; other work may run beside it
def test_every_row_runs(tmp_path):
    command = [sys.executable, "-m", "bench", "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=580)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "performance.json").read_text())
    assert list(results["rows"]) == list(ROWS)
    lines = [line for part in results["rows"].values() for line in part["lines"]]
    by_peer = {(line["what"], line["against"]): line for line in lines}
    step = by_peer["training step S, stage 1, fp32", "transformers"]
    assert step["ratio"] == pytest.approx(step["peer"] / step["ours"])
    assert by_peer["2 processes, one thread each, stage 1 of size S", "1 process"]["ours"] > 0
    assert "2 of 2 answers are the same" in by_peer["captions of a folder, small model, fp32", "one by one"]["note"]
    text = (tmp_path / "performance.md").read_text()
    before, after = (PROJECT / "docs/performance.md").read_text().split(page.BEGIN)[0], text.split(page.BEGIN)[0]
    assert before == after and text.endswith(f"{page.END}\n") and "the figures mean nothing" in text
    assert text.count("training step S, stage 1, fp32 ") == 2
    assert (tmp_path / "performance.png").stat().st_size > 10_000


def test_what_is_better_and_what_is_met():
    seconds = Line("step", "s CPU", 2.0, 3.0, "transformers", "ratio >= 1.7")
    assert seconds.ratio == 1.5 and seconds.reached == pytest.approx(1.5 / 1.7)
    rate = Line("images", "images/s CPU", 300.0, 150.0, "PIL", "ours >= 1200")
    assert rate.ratio == 2 and rate.reached == 0.25
    token = Line("token", "ms CPU", 20.0, target="ours <= 25")
    assert token.ratio is None and page.reached(token.plain()) == "met"
    assert page.reached(seconds.plain()) == "88%" and Line("copy", "GB/s", 9.0).reached is None


def test_the_timer_takes_turns_and_keeps_the_best():
    calls, seconds = [], iter([9.0, 3.0, 2.0, 5.0])

    def first() -> float:
        calls.append("first")
        return next(seconds)

    best = Setting(rounds=3, seconds=0).alternate({"first": first, "second": lambda: calls.append("second")})
    assert calls == ["first", "second"] * 4
    assert best["first"] == 2.0  # not that of the first call, which warms up
    assert 0 <= best["second"] < 1


def test_text_around_the_block_stays(tmp_path):
    file = tmp_path / "performance.md"
    file.write_text(f"Mine.\n{page.BEGIN}\nold\n{page.END}\nMine too.\n")
    line = Line("step", "s", 1.0, 2.0, "a peer", "ratio >= 1.7").plain()
    rows = {"step": {"lines": [line]}, "decode": {"lines": [], "why": "no weights"}}
    facts = {"date": "2026-11-28", "machine": "a CPU", "versions": {}, "seconds": 3.0, "quick": False}
    page.write({**facts, "rows": rows}, tmp_path)
    text = file.read_text()
    assert text.startswith("Mine.\n") and text.endswith("Mine too.\n") and "old" not in text
    assert "| step | s | 1 | 2 (a peer) | 2.00x |  | >= 1.7x | met |" in text
    assert "`decode` was not measured: no weights" in text
