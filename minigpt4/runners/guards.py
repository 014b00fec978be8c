"""Bad samples and bad steps: they are skipped and counted; a run that has too many of them ends."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path

from ..common.errors import DataError, UserError
from ..common.logger import SideWork, log

JUDGE_AFTER = 200  # samples read before their share of bad ones is judged


class DataMonitor:
    """Counts bad samples. Rank R lists them in `bad_samples_R.jsonl`, rank 0 in `bad_samples.jsonl`."""

    def __init__(self, output_dir: Path, max_bad_share: float, rank: int):
        self.path = Path(output_dir) / ("bad_samples.jsonl" if rank == 0 else f"bad_samples_{rank}.jsonl")
        self.max_bad_share, self.side_work = max_bad_share, SideWork()
        self.read: Counter = Counter()  # dataset -> samples
        self.faults: dict[str, Counter] = defaultdict(Counter)  # dataset -> fault -> samples

    def state_dict(self) -> dict:
        return {"read": dict(self.read), "faults": {name: dict(counts) for name, counts in self.faults.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.read = Counter(state["read"])
        self.faults.update({name: Counter(counts) for name, counts in state["faults"].items()})

    def see(self, dataset: str, batch: dict) -> None:
        """Count a batch's samples. Raises DataError for too many bad ones, or a stream of them alone."""
        bad = batch["bad"]
        self.read[dataset] += len(batch.get("text_input", ())) + len(bad)
        if bad:
            self.faults[dataset].update(why.partition(":")[0] for _, why in bad)
            with self.side_work(self.path), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                for where, why in bad:
                    file.write(json.dumps({"dataset": dataset, "sample": where, "why": why}) + "\n")
            log.warning("skipped %d bad sample%s, e.g. %s (%s)", len(bad), "s" if len(bad) > 1 else "", *bad[0])
        count, read = self.faults[dataset].total(), self.read[dataset]
        share = count / max(read, 1)
        if batch["hopeless"] or (read >= JUDGE_AFTER and share > self.max_bad_share):
            example = f", e.g. {bad[0][0]} ({bad[0][1]})" if bad else ""
            raise DataError(
                f"datasets.{dataset}: {count} of {read} samples are bad ({share:.0%}; run.max_bad_share is "
                f"{self.max_bad_share:.0%}): {self._most_often(dataset)}{example}; every one is listed in {self.path}, "
                "and `minigpt4 data check` finds them beforehand"
            )

    def _most_often(self, dataset: str) -> str:
        """`12 BrokenImage, 3 NoCaption`"""
        return ", ".join(f"{count} {fault}" for fault, count in self.faults[dataset].most_common(3))

    def summary(self) -> str:
        found = []
        for name, read in self.read.items():
            faults = f" ({self._most_often(name)})" if self.faults[name] else ""
            found.append(f"{self.faults[name].total()} of {read} samples of {name} were bad{faults}")
        return ", ".join(found)


class StepGuard:
    """Skips steps whose loss or gradient is not finite, `limit` in a row; one more ends the run. There is one for each
    process; all decide alike, because they get the same numbers."""

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped = self.in_a_row = 0

    def state_dict(self) -> dict:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def should_step(self, step: int, loss: float, grad_norm: float, loss_scale: float | None = None) -> bool:
        """Whether the optimizer may take this step, by the loss and gradient norm over all processes. A gradient that
        is not finite at a `loss_scale` (fp16's) above 1 is an overflow, which a lower scale prevents. Raises UserError
        after more than `limit` bad steps in a row."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        what = f"the loss of step {step} is {loss}"
        if math.isfinite(loss):
            if loss_scale is not None and loss_scale > 1:
                log.info("step %d skipped: a gradient overflows fp16 at the loss scale %g", step, loss_scale)
                return False
            what = f"the gradient of step {step} is not finite (its norm is {grad_norm}; the loss is {loss:.3f})"
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise UserError(
                f"{what}, {self.in_a_row} steps in a row (run.max_bad_steps is {self.limit}); none of them touched the "
                "weights. Lower run.init_lr, or set run.grad_clip=1.0 or run.amp=False"
            )
        log.warning("%s: step skipped", what)
        return False
