"""Counts bad samples, writes down which they were, and ends a run that has too many."""

import json
from collections import Counter
from pathlib import Path

from ..common.errors import DataError
from ..common.logger import log

JUDGE_AFTER = 200  # samples read before their share of bad ones is judged


class DataMonitor:
    """One for each process; `bad_samples.jsonl` of rank R is `bad_samples_R.jsonl` (rank 0 has no number)."""

    def __init__(self, output_dir: Path, max_bad_share: float, rank: int):
        self.path = Path(output_dir) / ("bad_samples.jsonl" if rank == 0 else f"bad_samples_{rank}.jsonl")
        self.max_bad_share = max_bad_share
        self.read: Counter = Counter()
        self.bad: Counter = Counter()
        self.faults: dict[str, Counter] = {}  # dataset -> fault -> how many; few, for they are names of classes
        self._mute = False

    def state_dict(self) -> dict:
        return {
            "read": dict(self.read), "bad": dict(self.bad), "faults": {n: dict(c) for n, c in self.faults.items()}
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        self.read, self.bad = Counter(state["read"]), Counter(state["bad"])
        self.faults = {name: Counter(counts) for name, counts in state.get("faults", {}).items()}

    def see(self, dataset: str, batch: dict) -> None:
        """Note a batch's bad samples.

        Raises:
            DataError: more than `max_bad_share` of what was read is bad, or a stream found nothing good any more.
        """
        bad = batch["bad"]
        self.read[dataset] += len(batch.get("text_input", ())) + len(bad)
        if bad:
            self.bad[dataset] += len(bad)
            self.faults.setdefault(dataset, Counter()).update(why.partition(":")[0] for _, why in bad)
            self._write_down(dataset, bad)
            log.warning("skipped %d bad sample%s, e.g. %s (%s)", len(bad), "s" if len(bad) > 1 else "", *bad[0])
        share = self.bad[dataset] / max(self.read[dataset], 1)
        if batch["hopeless"] or (self.read[dataset] >= JUDGE_AFTER and share > self.max_bad_share):
            raise DataError(
                f"datasets.{dataset}: {self.bad[dataset]} of {self.read[dataset]} samples are bad ({share:.0%}; "
                f"run.max_bad_share is {self.max_bad_share:.0%}): {self._most_often(dataset)}"
                + (f", e.g. {bad[0][0]} ({bad[0][1]})" if bad else "")
                + f"; every one is listed in {self.path}, and `minigpt4 data check` finds them beforehand"
            )

    def _write_down(self, dataset: str, bad: list[tuple[str, str]]) -> None:
        """A full disk ends no run here; the next checkpoint will say so."""
        try:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                for where, why in bad:
                    file.write(json.dumps({"dataset": dataset, "sample": where, "why": why}) + "\n")
        except OSError as error:
            if not self._mute:
                log.warning("%s: bad samples cannot be written down: %s", self.path, error.strerror)
            self._mute = True

    def _most_often(self, dataset: str, most: int = 3) -> str:
        """`12 BrokenImage, 3 NoCaption`"""
        faults = self.faults.get(dataset, Counter())
        return ", ".join(f"{count} {fault}" for fault, count in faults.most_common(most))

    def summary(self) -> str:
        return ", ".join(
            f"{self.bad[n]} of {self.read[n]} samples of {n} were bad"
            + (f" ({self._most_often(n)})" * bool(self.bad[n]))
            for n in self.read
        )
