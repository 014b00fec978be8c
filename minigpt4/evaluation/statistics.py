"""Measures over pictures, with bootstrap intervals. Pictures are drawn, with all answers on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
SEED = 0
CHUNK = 20_000_000  # numbers held at once while drawing: 160 MB


def ratio(sums: np.ndarray) -> np.ndarray:
    """sums (..., 2): numerator and denominator. Nothing counted gives 0."""
    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


@dataclass(frozen=True)
class Measure:
    """One number of a result."""

    name: str  # its key in results.json
    label: str  # what people read
    stats: np.ndarray  # (N, K), what each of N answers adds; the measure is a function of the sums
    value: Callable[[np.ndarray], np.ndarray] = ratio  # sums (..., K) -> (...)
    form: str = "{:.1%}"
    better: str = "more"  # "less", or "" where neither is


def share(name: str, label: str, counts: Sequence[tuple[float, float]], **more) -> Measure:
    """A ratio of sums; counts: (numerator, denominator) of each answer."""
    return Measure(name, label, np.asarray(counts, dtype=float).reshape(-1, 2), **more)


def mean(name: str, label: str, values: Sequence[float], **more) -> Measure:
    return share(name, label, [(v, 1) for v in values], **more)


def weights(pictures: int) -> Iterator[np.ndarray]:
    """(draws, pictures): how often each picture is in each resample; the same ones every time."""
    rng = np.random.default_rng(SEED)
    step = max(1, min(DRAWS, CHUNK // pictures))
    for start in range(0, DRAWS, step):
        yield rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=min(step, DRAWS - start)).astype(float)


def summarize(
    measures: Sequence[Measure], pictures: Sequence[str], before: Sequence[Measure] | None = None
) -> dict[str, dict]:
    """Each measure's value and 95 % interval: {"value", "low", "high", "n"}; n counts the pictures.

    Args:
        pictures: the picture of each answer.
        before: the same measures of other answers to the same questions: then it is measure - before, over the same
            resampled pictures (paired).
    """
    names, owner = np.unique(np.asarray(pictures, dtype=str), return_inverse=True)

    def by_picture(side: Sequence[Measure]) -> list[np.ndarray]:
        """(pictures, K) of each measure: what the answers on each picture add together."""
        sums = [np.zeros((len(names), m.stats.shape[1])) for m in side]
        for m, of_measure in zip(side, sums, strict=True):
            np.add.at(of_measure, owner, m.stats)
        return sums

    after, earlier = by_picture(measures), by_picture(before or ())

    def values(drawn: np.ndarray) -> list[np.ndarray]:
        """drawn (draws, pictures) -> (draws,) of each measure."""
        found = [m.value(drawn @ sums) for m, sums in zip(measures, after, strict=True)]
        if before:
            found = [v - m.value(drawn @ sums) for v, m, sums in zip(found, before, earlier, strict=True)]
        return found

    draws = [np.concatenate(chunks) for chunks in zip(*map(values, weights(len(names))), strict=True)]
    found = {}
    for m, (value,), drawn in zip(measures, values(np.ones((1, len(names)))), draws, strict=True):
        low, high = np.percentile(drawn, [2.5, 97.5])
        found[m.name] = {"value": float(value), "low": float(low), "high": float(high), "n": len(names)}
    return found


def compared(measures: dict[str, Sequence[Measure]], pictures: Sequence[str]) -> dict:
    """For results.json: what is measured, its values at each stage, and for two stages the second - the first."""
    *before, last = measures.values()
    found = {
        "measures": {m.name: {"label": m.label, "form": m.form, "better": m.better} for m in last},
        "scores": {stage: summarize(side, pictures) for stage, side in measures.items()},
    }
    if before:
        first = {m.name: m for m in before[0]}
        found["difference"] = summarize(last, pictures, [first[m.name] for m in last])
    return found
