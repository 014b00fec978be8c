"""What `minigpt4 data check` found, of a part and of a dataset."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..datasets.faults import short

EXAMPLES = 3  # of each fault that are named


@dataclass
class Report:
    """What was found in one part, or in a dataset. `width`, `height` (pixels) and `words` count how often each value
    came."""

    dataset: str
    shard: str | None  # None: the whole dataset
    samples: int = 0
    faults: Counter = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # fault -> [(where, why)]
    repeated: int = 0  # samples whose key another one of the shard has
    width: Counter = field(default_factory=Counter)
    height: Counter = field(default_factory=Counter)
    words: Counter = field(default_factory=Counter)
    seconds: float = 0
    missing: int = 0  # shards that are not there; each counts as one bad sample, as in training

    @property
    def bad(self) -> int:
        return self.faults.total()

    def note(self, fault: Exception, where: str) -> None:
        kind = type(fault).__name__
        self.faults[kind] += 1
        self.examples[kind] = [*self.examples.get(kind, []), (where, short(str(fault)))][:EXAMPLES]

    def join(self, other: "Report") -> None:
        for name in ("samples", "repeated", "seconds", "missing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("faults", "width", "height", "words"):
            getattr(self, name).update(getattr(other, name))
        for kind, examples in other.examples.items():
            self.examples[kind] = [*self.examples.get(kind, []), *examples][:EXAMPLES]

    def reasons(self, max_bad_share: float) -> Iterator[str]:
        """Why a run would stop at this dataset, or not begin."""
        if self.missing:
            yield f"{self.dataset}: {self.missing} shard{'s are' if self.missing > 1 else ' is'} missing"
        share = self.bad / max(self.samples, 1)
        if self.bad == self.samples:
            yield f"{self.dataset}: not one sample can be used"
        elif share > max_bad_share:
            most = f"at most {max_bad_share:.1%} may be"
            yield f"{self.dataset}: {self.bad} of {self.samples} samples are bad ({share:.1%}; {most})"

    def as_dict(self) -> dict:
        faults = {
            kind: {"count": times, "examples": [{"sample": where, "why": why} for where, why in self.examples[kind]]}
            for kind, times in self.faults.most_common()
        }
        spans = {
            name: {"min": min(values), "mean": round(mean(values), 1), "max": max(values)} if values else None
            for name, values in (("width", self.width), ("height", self.height), ("words", self.words))
        }
        return {
            "dataset": self.dataset, "shard": self.shard, "samples": self.samples, "bad": self.bad, "faults": faults,
            "repeated_keys": self.repeated, **spans, "seconds": round(self.seconds, 2),
        }  # fmt: skip


def mean(values: Counter) -> float:
    return sum(value * times for value, times in values.items()) / values.total()


def by_dataset(reports: list[Report]) -> list[Report]:
    totals: dict[str, Report] = {}
    for report in reports:
        totals.setdefault(report.dataset, Report(report.dataset, None)).join(report)
    return list(totals.values())


def tell(reports: list[Report], totals: list[Report]) -> Iterator[str]:
    """The lines of the report: parts that have faults, then each dataset."""

    def count(number: int, what: str) -> str:
        return f"{number:,} {what}{'s' * (number != 1)}"

    def span(values: Counter) -> str:
        return f"{min(values)} to {max(values)} (mean {mean(values):.0f})" if values else "-"

    worst = [report for report in reports if report.bad or report.repeated]
    if len(reports) > 1 and worst:
        wide = max(len(report.shard) for report in worst)
        yield f"{'part':{wide}}  samples  bad"
        for report in worst:
            kinds = [f"{times} {kind}" for kind, times in report.faults.most_common()]
            kinds += [f"{report.repeated} repeated keys"] * bool(report.repeated)
            yield f"{report.shard:{wide}}  {report.samples:7}  {report.bad:3}  {', '.join(kinds)}"
        yield ""
    for total in totals:
        parts = sum(report.dataset == total.dataset for report in reports) - total.missing
        samples, bad = total.samples - total.missing, total.bad - total.missing
        found = [f"{count(samples, 'sample')} in {count(parts, 'part')}, {bad:,} bad"] * bool(parts)
        found += [f"{count(total.missing, 'shard')} missing"] * bool(total.missing)
        yield f"{total.dataset}: {', '.join(found)}"
        yield f"  images, pixels: width {span(total.width)}, height {span(total.height)}"
        yield f"  captions, words: {span(total.words)}"
        yield f"  {total.samples / (total.seconds or 1):.0f} samples/s for each process"
        for kind, times in total.faults.most_common():
            yield f"  {kind}: {times:,}"
            yield from (f"    {where}: {why}" for where, why in total.examples[kind])
