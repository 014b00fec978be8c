"""A part of the check in a process of its own, with a time limit."""

import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil

from minigpt4.common.logger import read_log

IN_MEMORY = Path("/dev/shm")


def run_part(name: str, device: str, small: bool, limit: float, start_method: str = "spawn") -> tuple[dict, dict]:
    """The facts about the machine, and what the part measured until it ended or its `limit` in seconds was over."""
    context = multiprocessing.get_context(start_method)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minigpt4-gpu-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        memory = IN_MEMORY / folder.name if IN_MEMORY.is_dir() else None
        (folder / "said.txt").touch()
        process = context.Process(target=child, args=(name, device, small, folder, memory))
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            if process.is_alive():
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                process.join()
            if memory:
                shutil.rmtree(memory, ignore_errors=True)
        facts, *rows = (read_log(folder / "rows.jsonl") if (folder / "rows.jsonl").exists() else []) or [{}]
        part = {"outcome": "ok", "seconds": round(time.monotonic() - start, 1), "limit": limit, "rows": rows}
        why = None
        if late:
            why = f"stopped after its {limit:g} s"
        elif process.exitcode:
            why = f"the process ended with exit code {process.exitcode}"
        if why:
            part["why"] = why
        if why or any(row["outcome"] == "failed" for row in rows):
            part["outcome"] = "failed"
            print(f"{name}:\n{(folder / 'said.txt').read_text()[-4000:]}", file=sys.stderr)
    return facts, part


def child(name: str, device: str, small: bool, folder: Path, memory: Path | None) -> None:
    """One part, in its own process: a line of rows.jsonl for the machine, and one for each measurement."""
    said = (folder / "said.txt").open("w", buffering=1)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    import torch

    from minigpt4.common.dist_utils import choose_device
    from minigpt4.common.logger import setup_logging

    from .full import free_memory
    from .setting import NotRun, Setting, facts

    setup_logging()
    torch.manual_seed(0)
    setting = Setting(choose_device(device, f"--device {device}", "--device cpu --small"), small, folder, memory)
    with (folder / "rows.jsonl").open("w", buffering=1) as rows:
        rows.write(json.dumps(facts(setting.device)) + "\n")
        for what, measure in importlib.import_module(f"tests.gpu.{name}").measurements(setting).items():
            row, start = {"what": what, "outcome": "ok"}, time.monotonic()
            try:
                row["values"] = measure()
                if wrong := row["values"].pop("wrong", None):
                    row |= {"outcome": "failed", "why": wrong}
            except NotRun as reason:
                row |= {"outcome": "not run", "why": str(reason)}
            except Exception as error:
                traceback.print_exc()
                row |= {"outcome": "failed", "why": f"{type(error).__name__}: {error}"[-500:]}
            free_memory(setting.device)
            rows.write(json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}) + "\n")
