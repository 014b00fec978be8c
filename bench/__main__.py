"""`python -m bench`: measure all rows in at most 15 minutes, and write docs/performance.md, .json and .png.

CPU seconds are measured with one thread, seconds by the clock with two. Each row runs in processes of its own: one that
fails stops no other. Run it on a machine that does nothing else.
"""

import argparse
import contextlib
import datetime
import importlib
import os
import platform
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

from minigpt4.common.paths import PROJECT

from . import page
from .timer import NotRun, Setting, in_a_process, measure

os.environ |= {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
ONE, BOTH = (1,), (1, 2)
ROWS = {  # name -> where its function is, and the numbers of threads that it is measured with
    "limits": ("training.limits", BOTH),
    "step-fp32": ("training.step_fp32", BOTH),
    "step-bf16": ("training.step_bf16", BOTH),
    "memory": ("training.memory", ONE),
    "padding": ("training.padding", BOTH),
    "features": ("training.features", ONE),
    "processes": ("training.two_processes", ONE),
    "images": ("input.images", ONE),
    "decode": ("answering.decode", BOTH),
    "later-turns": ("answering.later_turns", ONE),
    "folder": ("answering.folder", BOTH),
    "start": ("answering.start", ONE),
}
PACKAGES = ("torch", "transformers", "torchvision", "torchao", "bitsandbytes")


def run_row(name: str, setting: Setting) -> dict:
    """{"lines": as plain values, "seconds"}, with "why" and "failed" for a row without figures."""
    where, threads = ROWS[name]
    began, part = time.monotonic(), {"lines": []}
    try:
        for count in (1,) if setting.quick else threads:
            lines = in_a_process(Setting(count, setting.quick, setting.rounds, setting.seconds), measure, where)
            if count == 1:
                part["lines"] = [line.plain() for line in lines]
                continue
            by_name = {(line.what, line.against): line.plain() for line in lines}
            for line in part["lines"]:
                line["two_threads"] = by_name[line["what"], line["against"]]
    except NotRun as reason:
        part["why"] = str(reason)
    except Exception as error:
        traceback.print_exc()
        part |= {"why": f"{type(error).__name__}: {error}"[:300], "failed": True}
    return part | {"seconds": round(time.monotonic() - began, 1)}


def facts() -> dict:
    """What the figures depend on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(ImportError):
            found[package] = version(package)
    load = f", load {os.getloadavg()[0]:.1f} at the start"
    return {"date": datetime.date.today().isoformat(), "machine": f"{processor}, {os.cpu_count()} cores{load}",
            "versions": found}  # fmt: skip


def main() -> int:
    """The exit code is 1 when a row failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=ROWS, action="append", metavar="ROW",
                        help=f"this row; can be repeated: {', '.join(ROWS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the code works")
    parser.add_argument("--rounds", type=int, help="measure each row so often, for a busy machine (default: 3 or more)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs; output/bench when not all rows "
                        "are measured as they should be)")  # fmt: skip
    args = parser.parse_args()
    whole = not (args.only or args.quick or args.rounds)
    rounds = args.rounds or (1 if args.quick else 3)
    setting = Setting(quick=args.quick, rounds=rounds, seconds=10 if whole else 0)
    results, began = {**facts(), "quick": args.quick, "rows": {}}, time.monotonic()
    if args.quick:  # forks have the imports
        for module in ("training", "answering"):
            importlib.import_module(f"bench.{module}")
    for name in args.only or ROWS:
        print(f"{name} ...", flush=True)
        results["rows"][name] = run_row(name, setting)
    results["seconds"] = round(time.monotonic() - began, 1)
    print(*page.table(results), sep="\n")
    folder = args.out or PROJECT / ("docs" if whole else "output/bench")
    page.write(results, folder)
    missing = [f"{name} ({part['why']})" for name, part in results["rows"].items() if "why" in part]
    print(f"{results['seconds']:.0f} s; {folder}; {'not measured: ' + ', '.join(missing) if missing else 'all rows'}")
    return int(any("failed" in part for part in results["rows"].values()))


if __name__ == "__main__":
    sys.exit(main())
