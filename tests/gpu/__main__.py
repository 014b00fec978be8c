"""What only a GPU can show, in at most 8 minutes: `python -m tests.gpu --out results.json` (docs/gpu.md).

Each part runs in a process of its own with a time limit: one that fails, hangs or runs out of memory stops no other.
`--device cpu --small` goes through everything in tiny sizes, to see that the check itself works.
"""

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from .page import PAGE, page, table
from .part import run_part

# Seconds that a part may take, imports included: 470 in all.
LIMITS = {"goldens": 50, "full_size": 105, "chat": 140, "processes": 65, "faster": 110}
CPU_LIMIT = 300  # two busy cores


def main() -> int:
    """The exit code is 1 when a part failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes; with --device cpu always")
    parser.add_argument("--only", choices=LIMITS, action="append", help="this part; can be repeated")
    parser.add_argument("--out", type=Path, default=Path("output/gpu.json"), help="results (default: %(default)s)")
    parser.add_argument("--docs", type=Path, metavar="JSON", help="only write these results into docs/gpu.md")
    args = parser.parse_args()
    if args.docs:
        PAGE.write_text(page(json.loads(args.docs.read_text())))
        return 0
    on_cpu = args.device == "cpu"
    if on_cpu:  # a forked part has the imports already; a process that may use CUDA is no good to fork
        import minigpt4.runners.runner
        import minigpt4.tasks  # noqa: F401
    args.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    results = {
        "date": datetime.date.today().isoformat(), "device": args.device, "small": args.small or on_cpu,
        "parts": {},
    }  # fmt: skip
    for name in args.only or LIMITS:
        print(f"{name} ...", flush=True)
        limit, how = (CPU_LIMIT, "fork") if on_cpu else (LIMITS[name], "spawn")
        facts, results["parts"][name] = run_part(name, args.device, results["small"], limit, how)
        results |= facts
        results["seconds"] = round(time.monotonic() - start, 1)
        write(args.out, results)
    print(table(results))
    failed = [name for name, part in results["parts"].items() if part["outcome"] == "failed"]
    print(
        f"{results['seconds']:.0f} s; results: {args.out}; {'failed: ' + ', '.join(failed) if failed else 'all right'}"
    )
    return int(bool(failed))


def write(path: Path, results: dict) -> None:
    """All of it or nothing: a reader never sees half a file."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
