"""What `minigpt4 data check` found, of a part and of a dataset."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..datasets.faults import short

EXAMPLES = 3  # of each fault that are named


@dataclass
class Span:
    """Smallest, mean and largest of some numbers."""

    least: float = float("inf")
    most: float = 0
    total: float = 0
    count: int = 0

    def add(self, value: float) -> None:
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.total, self.count = self.total + value, self.count + 1

    def join(self, other: "Span") -> None:
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.total, self.count = self.total + other.total, self.count + other.count

    def as_dict(self) -> dict | None:
        return {"min": self.least, "mean": round(self.total / self.count, 1), "max": self.most} if self.count else None

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g} (mean {self.total / self.count:.0f})" if self.count else "-"


@dataclass
class Report:
    """What was found in one part, or in a dataset."""

    dataset: str
    shard: str | None  # None: the whole dataset
    samples: int = 0
    faults: Counter = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # fault -> [(where, why)]
    repeated: int = 0  # samples whose key another one of the shard has
    width: Span = field(default_factory=Span)
    height: Span = field(default_factory=Span)
    words: Span = field(default_factory=Span)
    seconds: float = 0
    missing: int = 0  # shards that are not there

    @property
    def bad(self) -> int:
        return self.faults.total()

    def note(self, fault: Exception, where: str) -> None:
        kind = type(fault).__name__
        self.samples += 1
        self.faults[kind] += 1
        if len(examples := self.examples.setdefault(kind, [])) < EXAMPLES:
            examples.append((where, short(str(fault))))

    def join(self, other: "Report") -> None:
        self.samples, self.repeated = self.samples + other.samples, self.repeated + other.repeated
        self.seconds, self.missing = self.seconds + other.seconds, self.missing + other.missing
        self.faults.update(other.faults)
        for kind, examples in other.examples.items():
            mine = self.examples.setdefault(kind, [])
            mine += examples[: EXAMPLES - len(mine)]
        for mine, its in ((self.width, other.width), (self.height, other.height), (self.words, other.words)):
            mine.join(its)

    def reasons(self, max_bad_share: float) -> Iterator[str]:
        """Why a run would stop at this dataset, or not begin."""
        if self.missing:
            yield f"{self.dataset}: {self.missing} shard{'s are' if self.missing > 1 else ' is'} missing"
        share = self.bad / max(self.samples, 1)
        if self.bad == self.samples:
            yield f"{self.dataset}: not one sample can be used"
        elif share > max_bad_share:
            yield (
                f"{self.dataset}: {self.bad} of {self.samples} samples are bad ({share:.1%}; at most "
                f"{max_bad_share:.1%} may be)"
            )

    def as_dict(self) -> dict:
        faults = {
            kind: {"count": count, "examples": [{"sample": w, "why": y} for w, y in self.examples.get(kind, [])]}
            for kind, count in self.faults.most_common()
        }
        spans = {n: getattr(self, n).as_dict() for n in ("width", "height", "words")}
        return {
            "dataset": self.dataset, "shard": self.shard, "samples": self.samples, "bad": self.bad, "faults": faults,
            "repeated_keys": self.repeated, **spans, "seconds": round(self.seconds, 2),
        }  # fmt: skip


def by_dataset(reports: list[Report]) -> list[Report]:
    totals: dict[str, Report] = {}
    for report in reports:
        totals.setdefault(report.dataset, Report(report.dataset, None)).join(report)
    return list(totals.values())


def count(number: int, what: str) -> str:
    """1 sample, 2 samples"""
    return f"{number:,} {what}{'s' * (number != 1)}"


def tell(reports: list[Report], totals: list[Report]) -> Iterator[str]:
    """The lines of the report: parts that have faults, then each dataset."""
    worst = [r for r in reports if r.bad or r.repeated]
    if len(reports) > 1 and worst:
        wide = max(len(r.shard) for r in worst)
        yield f"{'part':{wide}}  samples  bad"
        for r in worst:
            kinds = ", ".join(f"{n} {kind}" for kind, n in r.faults.most_common())
            repeated = f"{r.repeated} repeated keys" if r.repeated else ""
            yield f"{r.shard:{wide}}  {r.samples:7}  {r.bad:3}  {', '.join(filter(None, (kinds, repeated)))}"
        yield ""
    for total in totals:
        # A missing shard is counted as one bad sample, as in training; here it is no sample.
        parts = sum(r.dataset == total.dataset for r in reports) - total.missing
        samples, bad = total.samples - total.missing, total.bad - total.missing
        speed = total.samples / total.seconds if total.seconds else 0
        found = f"{count(samples, 'sample')} in {count(parts, 'part')}, {bad:,} bad"
        missing = [f"{count(total.missing, 'shard')} missing"] * bool(total.missing)
        yield f"{total.dataset}: {', '.join([found] * bool(parts) + missing)}"
        yield f"  images, pixels: width {total.width}, height {total.height}"
        yield f"  captions, words: {total.words}"
        yield f"  {speed:.0f} samples/s for each process"
        for kind, times in total.faults.most_common():
            yield f"  {kind}: {times:,}"
            yield from (f"    {where}: {why}" for where, why in total.examples[kind])
