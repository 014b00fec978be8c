"""Kill training at random, again and again, and see that nothing is lost: `python tests/soak.py --kills 50`.

For stage 1 (shards, two loader workers) and stage 2 (a list, prompts, a trained Q-Former), in one process and in two, a
run is killed wherever it happens to be and started again until it is through. Its losses, learning rates and weights
must then be, bit by bit, those of a run that nobody touched. Three kinds of death, in turn:

- SIGKILL, of a random process, at a random moment
- SIGTERM to all of them, as a cluster sends it: the run saves first
- in the write path: the process dies at a random system call of saving (with the file cut to a random length, as after
  a power loss: what was not yet flushed is gone)

It takes a few minutes; the report is docs/soak.md.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from training import Child, lay_config, lay_data, lay_model  # noqa: E402

from minigpt4.datasets import shards  # noqa: E402

STEPS = 24
RUN = {"iters_per_epoch": 12, "max_epoch": 2, "save_every_steps": 2, "keep_last": 2}
CASES = {
    "stage 1, 1 process": ("stage1", {}, {"num_workers": 2}, 1),
    "stage 1, 2 processes": ("stage1", {}, {"num_workers": 1, "batch_size_train": 2}, 2),
    "stage 2, 1 process": ("stage2", {"freeze_qformer": False}, {"num_workers": 0, "accum_grad_iters": 2}, 1),
    "stage 2, 2 processes": ("stage2", {"freeze_qformer": False}, {"num_workers": 1, "batch_size_train": 2}, 2),
}
KINDS = ("SIGKILL", "SIGTERM", "in the write path")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_while_writing(seed: int) -> None:
    """At one of the next system calls of saving this process dies; the file it was at is cut to a random length."""
    rng = random.Random(seed)
    left = rng.randint(1, 14)
    originals = {name: getattr(os, name) for name in ("fsync", "replace")}

    def dying(name):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left > 0:
                return originals[name](*arguments)
            if name == "replace" and rng.random() < 0.7:  # before the rename; else just after it
                os.truncate(arguments[0], rng.randint(0, os.path.getsize(arguments[0])))
            else:
                originals[name](*arguments)
            os._exit(137)

        return call

    for name in originals:
        setattr(os, name, dying(name))


def start(config: str, folder: Path, world: int, fault_seed: int | None = None) -> list[Child]:
    """The processes of a run; with a fault, rank 0 (which writes) dies while writing."""
    port = str(free_port())

    def prepare(rank: int):
        def ready() -> None:
            shards.BLOCK = 30  # the made shards are small
            if world > 1:
                os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
                os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world))
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            if fault_seed is not None and rank == 0:
                die_while_writing(fault_seed)

        return ready

    return [Child(config, folder / f"said_{rank}.txt", prepare=prepare(rank)) for rank in range(world)]


def rows(folder: Path) -> list[tuple]:
    if not (folder / "log.jsonl").exists():
        return []
    whole = (folder / "log.jsonl").read_text().split("\n")[:-1]
    return [(r["step"], r["loss"], r["lr"], r["grad_norm"]) for r in map(json.loads, whole)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint_1.pth", weights_only=True)["model"]


def wait_all(children: list[Child], seconds: float) -> list[int]:
    """The exit codes; what has not ended by then is killed (-9), as torchrun would."""
    end = time.monotonic() + seconds
    while any(c.poll() is None for c in children) and time.monotonic() < end:
        time.sleep(0.005)
    return [c.poll() if c.poll() is not None else c.signal(signal.SIGKILL, group=True) for c in children]


def kill_once(config: str, folder: Path, run_folder: Path, world: int, kind: str, rng: random.Random) -> str | None:
    """Start and die; returns `kind`. None when the run was through before it could be killed."""
    before = len(rows(run_folder))
    children = start(config, folder, world, rng.randrange(2**31) if kind == KINDS[2] else None)
    if kind == KINDS[2]:
        while all(c.poll() is None for c in children):
            time.sleep(0.005)
        if not any(wait_all(children, 5)):
            return None
    else:
        # A step more than it had, or two, or three; and then some milliseconds into whatever comes next.
        target = min(before + rng.randint(0, 4), STEPS)
        while len(rows(run_folder)) < target and all(c.poll() is None for c in children):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
        if all(c.poll() is not None for c in children):
            return None
        if kind == KINDS[0]:
            os.kill(rng.choice([c for c in children if c.code is None]).pid, signal.SIGKILL)
        else:
            for child in children:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGTERM)
    wait_all(children, 5)
    return kind


def soak(case: str, kills: int, golden: Path, rng: random.Random) -> dict:
    """One case: an untouched run, then runs that are killed until there were `kills` deaths."""
    stage, model, run, world = CASES[case]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        published, data = lay_model(golden, folder / "published"), lay_data(folder / "data")
        whole = lay_config(folder, published, data, stage, "whole", model, RUN | run)
        codes = wait_all(start(whole, folder, world), 300)
        assert codes == [0] * world, (folder / "said_0.txt").read_text()
        expected, trained = rows(folder / "whole"), weights(folder / "whole")
        assert [r[0] for r in expected] == list(range(1, STEPS + 1))
        deaths, runs, differences = [], 0, 0
        while len(deaths) < kills:
            name = f"killed_{runs}"
            config = lay_config(folder, published, data, stage, name, model, RUN | run)
            while len(deaths) < kills:
                death = kill_once(config, folder, folder / name, world, KINDS[len(deaths) % 3], rng)
                if death is None:
                    break
                deaths.append(death)
                print(f"{case}: {len(deaths)}/{kills} {death}, step {len(rows(folder / name))}", flush=True)
            codes = wait_all(start(config, folder, world), 300)
            assert codes == [0] * world, (folder / "said_0.txt").read_text()
            runs += 1
            now = weights(folder / name)
            same = now.keys() == trained.keys() and all(torch.equal(now[k], trained[k]) for k in trained)
            if rows(folder / name) != expected or not same:
                differences += 1
                print(f"{case}: run {runs} DIFFERS", flush=True)
    return {"case": case, "kills": len(deaths), "runs": runs, "differences": differences,
            "kinds": {k: deaths.count(k) for k in KINDS}}  # fmt: skip


def report(results: list[dict], seed: int, minutes: float) -> str:
    total, different = sum(r["kills"] for r in results), sum(r["differences"] for r in results)
    lines = [
        "# Soak: training that is killed",
        "",
        f"`python tests/soak.py --kills {total} --seed {seed}`: **{total} kills, {different} differences**, "
        f"{minutes:.0f} minutes on two CPU cores.",
        "",
        "A run is killed at random, started again with the same command, and killed again, until it is through.",
        "Losses, learning rates, gradient norms and final weights are compared bit by bit with a run that nobody",
        f"touched. {STEPS} steps, a checkpoint every second one; the golden set's model; CPU, fp32. Stage 1 reads",
        "shards through loader workers; stage 2 trains the Q-Former too, with dropout and prompts drawn by chance.",
        "",
        "| case | kills | " + " | ".join(KINDS) + " | runs | runs that differ |",
        "|---" * (len(KINDS) + 4) + "|",
    ]
    for r in results:
        cells = [r["case"], r["kills"], *r["kinds"].values(), r["runs"], r["differences"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "In the write path: the process dies at a random fsync or rename of saving, before or after it, and the file",
        "it was at is cut to a random length. What outlives a death in a run of two processes is killed after 5 s, as",
        "torchrun does at once.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    golden, began = HERE / "golden/data/a", time.monotonic()
    shares = [args.kills // len(CASES) + (i < args.kills % len(CASES)) for i in range(len(CASES))]
    results = [
        soak(case, share, golden, random.Random(f"{args.seed} {case}"))
        for case, share in zip(CASES, shares, strict=True)
    ]
    text = report(results, args.seed, (time.monotonic() - began) / 60)
    print(text)
    if args.out:
        args.out.write_text(text)
    return 1 if any(r["differences"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
