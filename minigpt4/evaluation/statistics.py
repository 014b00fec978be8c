"""Measures over pictures, with bootstrap intervals. Pictures are drawn, with all answers on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS, STEP = 2000, 100  # resamples, and how many are drawn at once
SEED = 0


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

    def by_picture(measure: Measure) -> np.ndarray:
        """(pictures, K): what the answers on each picture add together."""
        sums = np.zeros((len(names), measure.stats.shape[1]))
        np.add.at(sums, owner, measure.stats)
        return sums

    after = [(m.value, by_picture(m)) for m in measures]
    earlier = [(m.value, by_picture(m)) for m in before or ()]

    def values(drawn: np.ndarray) -> np.ndarray:
        """(..., pictures), how often resamples have each picture -> (measures, ...)."""
        found = np.array([value(drawn @ sums) for value, sums in after])
        return found - [value(drawn @ sums) for value, sums in earlier] if before else found

    rng, even = np.random.default_rng(SEED), np.full(len(names), 1 / len(names))
    draws = [values(rng.multinomial(len(names), even, size=STEP)) for _ in range(DRAWS // STEP)]
    bounds = np.percentile(np.concatenate(draws, axis=1), [2.5, 97.5], axis=1)
    columns = zip(measures, values(np.ones(len(names))), *bounds, strict=True)
    return {
        m.name: {"value": float(value), "low": float(low), "high": float(high), "n": len(names)}
        for m, value, low, high in columns
    }


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
