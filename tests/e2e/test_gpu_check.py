"""The check that runs on a GPU, in tiny sizes on a CPU; what it says of its results; the wheels it travels with."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.gpu.__main__ import LIMITS
from tests.gpu.page import PAGE, page, table
from tests.gpu.part import run_part
from tests.gpu.wheels import keep_cuda

PROJECT = Path(__file__).parents[2]


@pytest.mark.timeout(900)  # half a minute of it is imports, and other tests may run beside it
def test_every_part_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--small", "--out", str(out)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=880)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(out.read_text())
    assert list(results["parts"]) == list(LIMITS)
    rows = {row["what"]: row for part in results["parts"].values() for row in part["rows"]}
    assert all(row["outcome"] in ("ok", "not run") for row in rows.values())
    assert rows["a, fp32"]["values"]["arrays"] >= 56
    assert rows["stage 1, training"]["values"]["planned_samples_per_second"] > 0
    assert 0 < rows["8 bit"]["values"]["logits_error"] < rows["4 bit"]["values"]["logits_error"]
    assert rows["torchrun, killed and resumed"]["values"]["steps"] == 8
    assert rows["torch.compile"]["values"]["loss_difference"] < 1e-3
    assert "| stage 2, training | ok | 2 |" in page(results)
    assert list(tmp_path.iterdir()) == [out]


def test_a_part_that_hangs_is_stopped():
    _, part = run_part("goldens", "cpu", True, 0.2, "fork")
    assert part["outcome"] == "failed"
    assert part["why"] == "stopped after its 0.2 s"
    assert part["seconds"] < 20


@pytest.mark.parametrize(
    ("fault", "outcome", "why"),
    [
        ({"wrong": "past 0.05: loss 0.2", "loss": 0.2}, "failed", "past 0.05: loss 0.2"),
        (RuntimeError("CUDA out of memory"), "failed", "RuntimeError: CUDA out of memory"),
        ("not run", "not run", "flash-attn is not installed"),
    ],
)
def test_a_measurement_that_fails_stops_no_other(monkeypatch, capsys, fault, outcome, why):
    from tests.gpu import goldens
    from tests.gpu.setting import NotRun

    def measure():
        if fault == "not run":
            raise NotRun("flash-attn is not installed")
        if isinstance(fault, Exception):
            raise fault
        return dict(fault)

    monkeypatch.setattr(goldens, "measurements", lambda setting: {"first": measure, "second": lambda: {"loss": 2.5}})
    facts, part = run_part("goldens", "cpu", True, 60, "fork")
    first, second = part["rows"]
    assert (first["outcome"], first["why"]) == (outcome, why)
    assert (second["outcome"], second["values"]) == ("ok", {"loss": 2.5})
    assert part["outcome"] == ("ok" if outcome == "not run" else "failed")
    said = table({"parts": {"goldens": part}})
    assert why in said and "loss 2.5" in said and facts["versions"]["torch"]


def test_all_parts_together_take_at_most_eight_minutes():
    assert sum(LIMITS.values()) <= 480


def test_the_docs_show_the_committed_results():
    results, text = PROJECT / "docs" / "gpu.json", PAGE.read_text()
    if results.exists():
        assert text == page(json.loads(results.read_text()))
    else:
        assert "has not been run on a GPU yet" in text


def test_one_cuda_library_travels(tmp_path):
    wheel, record = tmp_path / "bitsandbytes-1-py3-none-any.whl", "bitsandbytes-1.dist-info/RECORD"
    libraries = [f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda128", "cuda130", "rocm70")]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in libraries:
            archive.writestr(name, name)
        archive.writestr(record, "".join(f"{name},,\n" for name in libraries))
    keep_cuda(wheel, "130")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == [libraries[0], libraries[2], record]
        assert archive.read(record).decode().split() == [f"{libraries[0]},,", f"{libraries[2]},,"]
    with pytest.raises(SystemExit, match="no library for CUDA 999"):
        keep_cuda(wheel, "999")
