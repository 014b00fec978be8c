"""Logging: people read the console of rank 0; programs read log.jsonl; TensorBoard reads its own files."""

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from textwrap import indent

from .paths import write_whole

log = logging.getLogger("minigpt4")
WORKER_DIED = "DataLoader worker (pid"  # so begins an error that PyTorch raises wherever the run is just then


def setup_logging(rank: int = 0) -> None:
    """Console logging for this process: info on rank 0, errors only elsewhere. A second call takes today's stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers; our own checks report what is wrong."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # The progress bar of the GGUF reader is a plain tqdm, which ignores transformers' settings.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


class SideWork:
    """`with side_work("loss.png"):` what a run can do without. A failure is a warning, the same one only once."""

    def __init__(self):
        self._warned: set[tuple] = set()

    @contextmanager
    def __call__(self, what: str | Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever fails there, it is no reason to lose a run
            if str(error).startswith(WORKER_DIED):
                raise
            if (what, type(error)) not in self._warned:
                log.warning("%s: %s: %s; training goes on without", what, type(error).__name__, error)
                self._warned.add((what, type(error)))


class MetricLog:
    """One JSON object a line in `log.jsonl`, and the same numbers in TensorBoard, on the main process only."""

    def __init__(self, output_dir: Path, from_step: int = 0):
        self.folder, self._side_work, self._board = Path(output_dir), SideWork(), None
        log_file = self.folder / "log.jsonl"
        with self._side_work(log_file):
            # A resumed run repeats the steps after its checkpoint: their first rows go.
            rows = read_log(log_file) if log_file.exists() else []
            write_whole(log_file, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= from_step))
        with self._side_work("TensorBoard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(output_dir), purge_step=from_step + 1)

    def write(self, step: int, **values) -> None:
        """`step` counts optimizer steps from 1. Values are plain numbers or strings."""
        self._append("log.jsonl", [{"step": step, **values}])
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._on_board("add_scalar", name, value, step)

    def write_samples(self, step: int, answers: list[dict]) -> None:
        """What the model said of each picture ({"image", "answer"}), in `samples.jsonl`."""
        self._append("samples.jsonl", [{"step": step, **row} for row in answers])
        for row in answers:
            # TensorBoard reads Markdown, in which an answer could name an image of another host; code is text.
            self._on_board("add_text", row["image"], indent(row["answer"], "    ", lambda line: True), step)

    def close(self) -> None:
        self._on_board("close")

    def _append(self, name: str, rows: list[dict]) -> None:
        file = self.folder / name
        with self._side_work(file), file.open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _on_board(self, method: str, *arguments) -> None:
        if self._board is not None:
            with self._side_work("TensorBoard"):
                getattr(self._board, method)(*arguments)


def read_log(path: Path) -> list[dict]:
    """The rows of a log.jsonl. A last line that a killed run wrote by half is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def pyplot():
    """matplotlib.pyplot that draws into files. MPLBACKEND may name a backend that only a notebook has; matplotlib
    refuses that when it is imported."""
    os.environ["MPLBACKEND"] = "Agg"
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_log(path: Path, out: Path) -> None:
    """Draw a log.jsonl into a PNG: loss (raw, smoothed, of validation) and learning rate; throughput below."""
    plt = pyplot()
    every = read_log(path)
    rows, valid = ([row for row in every if key in row] for key in ("loss", "valid_loss"))
    if not rows:
        return
    steps, loss = [r["step"] for r in rows], [r["loss"] for r in rows]
    smooth = list(accumulate(loss, lambda mean, value: 0.95 * mean + 0.05 * value))
    figure, (axis, speed) = plt.subplots(2, figsize=(7, 5), sharex=True, layout="constrained", height_ratios=[4, 1])
    axis.plot(steps, loss, color="#bbbbbb", linewidth=0.8, label="loss")
    axis.plot(steps, smooth, color="#c44e52", label="loss, smoothed")
    if valid:
        axis.plot([r["step"] for r in valid], [r["valid_loss"] for r in valid], "o-", label="validation loss")
    axis.set_ylabel("loss (nats per target token)")
    right = axis.twinx()
    right.plot(steps, [r["lr"] for r in rows], color="#4c72b0", linewidth=1, label="learning rate")
    right.set_ylabel("learning rate")
    axis.legend(handles=[*axis.get_lines(), *right.get_lines()], loc="upper right", frameon=False)
    speed.plot(steps, [r.get("samples_per_second", 0) for r in rows])
    speed.set(xlabel="optimizer step", ylabel="samples/s", ylim=(0, None))
    figure.savefig(out, dpi=110)
    plt.close(figure)


def hms(seconds: float) -> str:
    """3725 -> 1:02:05"""
    return str(timedelta(seconds=round(seconds)))
