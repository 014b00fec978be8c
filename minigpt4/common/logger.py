"""Logging: people read the console of rank 0; programs read log.jsonl; TensorBoard reads its own files."""

import json
import logging
from pathlib import Path
from textwrap import indent

from .errors import UserError
from .paths import write_whole

log = logging.getLogger("minigpt4")


def setup_logging(rank: int = 0) -> None:
    """Console logging for this process: info on rank 0, errors only elsewhere. A second call takes today's stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)


class MetricLog:
    """One JSON object a line in `log.jsonl`, and the same numbers in TensorBoard, on the main process only."""

    def __init__(self, output_dir: Path, from_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self.path = Path(output_dir) / "log.jsonl"
        self._drop_after(from_step)
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(output_dir), purge_step=from_step + 1)

    def _drop_after(self, step: int) -> None:
        """A resumed run repeats the steps after its checkpoint: forget their first telling, keep the rest."""
        if self.path.exists():
            kept = [json.dumps(row) + "\n" for row in read_log(self.path) if row["step"] <= step]
            write_whole(self.path, "".join(kept))

    def write(self, step: int, **values) -> None:
        """`step` counts optimizer steps from 1. Values are plain numbers or strings."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; the last checkpoint is whole") from None
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def write_samples(self, step: int, answers: list[dict]) -> None:
        """What the model said of each picture ({"image", "answer"}), in `samples.jsonl`."""
        with self.path.with_name("samples.jsonl").open("a", encoding="utf-8") as file:
            for row in answers:
                file.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
                # TensorBoard reads Markdown, in which an answer could name an image of another host; code is text.
                self._board.add_text(row["image"], indent(row["answer"], "    ", lambda line: True), step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_log(path: Path) -> list[dict]:
    """The rows of a log.jsonl. A last line that a killed run wrote by half is left out."""
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plot_log(path: Path, out: Path) -> None:
    """Draw a log.jsonl into a PNG: loss (raw, smoothed, of validation) and learning rate; throughput below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    every = read_log(path)
    rows = [row for row in every if "loss" in row]
    if not rows:
        return
    steps = [r["step"] for r in rows]
    loss = [r["loss"] for r in rows]
    smooth, mean = [], loss[0]
    for value in loss:
        mean = 0.95 * mean + 0.05 * value
        smooth.append(mean)
    figure, (axis, speed) = plt.subplots(
        2, figsize=(7, 5), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [4, 1]}
    )
    axis.plot(steps, loss, color="#bbbbbb", linewidth=0.8, label="loss")
    axis.plot(steps, smooth, color="#c44e52", linewidth=1.8, label="loss, smoothed")
    valid = [row for row in every if "valid_loss" in row]
    if valid:
        points = [r["step"] for r in valid], [r["valid_loss"] for r in valid]
        axis.plot(*points, "o-", color="#55a868", markersize=4, label="validation loss")
    axis.set_ylabel("loss (nats per target token)")
    axis.grid(alpha=0.3)
    right = axis.twinx()
    right.plot(steps, [r["lr"] for r in rows], color="#4c72b0", linewidth=1, alpha=0.7, label="learning rate")
    right.set_ylabel("learning rate")
    axis.legend(handles=[*axis.get_lines(), *right.get_lines()], loc="upper right", frameon=False)
    speed.plot(steps, [r.get("samples_per_second", 0) for r in rows], color="#8172b3", linewidth=1)
    speed.set_ylim(bottom=0)
    speed.set_ylabel("samples/s")
    speed.set_xlabel("optimizer step")
    speed.grid(alpha=0.3)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def hms(seconds: float) -> str:
    """3725 -> 1:02:05"""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
