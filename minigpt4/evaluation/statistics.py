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
    form: str = "{:.1%}"
    better: str = "more"  # "less", or "" where neither is
    value: Callable[[np.ndarray], np.ndarray] = ratio  # sums (..., K) -> (...)


def share(name: str, label: str, counts: Sequence[tuple[float, float]], *style: str, **more) -> Measure:
    """A ratio of sums; counts: (numerator, denominator) of each answer."""
    return Measure(name, label, np.asarray(counts, dtype=float).reshape(-1, 2), *style, **more)


def mean(name: str, label: str, values: Sequence[float], *style: str, **more) -> Measure:
    return share(name, label, [(v, 1) for v in values], *style, **more)


def summarize(measures: Sequence[Measure], pictures: Sequence[str], before: Sequence[Measure] = ()) -> dict[str, dict]:
    """Each measure's value and 95 % interval: {"value", "low", "high", "n"}; n counts the pictures.

    Args:
        pictures: the picture of each answer.
        before: the same measures of other answers to the same questions: then it is measure - before, over the same
            resampled pictures (paired).
    """
    names, owner = np.unique(np.asarray(pictures, dtype=str), return_inverse=True)

    def by_picture(chosen: Sequence[Measure]) -> list[tuple]:
        """(value, what the answers on each picture add together: (pictures, K)) of each measure."""
        sums = ([np.bincount(owner, column, len(names)) for column in m.stats.T] for m in chosen)
        return [(m.value, np.stack(columns, axis=1)) for m, columns in zip(chosen, sums, strict=True)]

    after, earlier = by_picture(measures), by_picture(before)

    def values(drawn: np.ndarray) -> np.ndarray:
        """(..., pictures), how often resamples have each picture -> (measures, ...)."""
        found = np.array([value(drawn @ sums) for value, sums in after])
        return found - [value(drawn @ sums) for value, sums in earlier] if earlier else found

    rng, even = np.random.default_rng(SEED), np.full(len(names), 1 / len(names))
    draws = [values(rng.multinomial(len(names), even, size=STEP)) for _ in range(DRAWS // STEP)]
    bounds = np.percentile(np.concatenate(draws, axis=1), [2.5, 97.5], axis=1)
    columns = zip(measures, values(np.ones(len(names))), *bounds, strict=True)
    return {
        m.name: {"value": float(value), "low": float(low), "high": float(high), "n": len(names)}
        for m, value, low, high in columns
    }
