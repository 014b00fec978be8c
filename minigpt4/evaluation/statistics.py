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
    """One number of a result.

    Args:
        name: its key in results.json.
        label: what people read.
        stats: (N, K), what each of N answers adds; the measure is a function of the sums.
        value: sums (..., K) -> (...).
        form: how the value is written.
        better: "more", "less", or "" where neither is.
    """

    name: str
    label: str
    stats: np.ndarray
    value: Callable[[np.ndarray], np.ndarray] = ratio
    form: str = "{:.1%}"
    better: str = "more"


def share(name: str, label: str, counts: Sequence[tuple[float, float]], **more) -> Measure:
    """A ratio of sums; counts: (numerator, denominator) of each answer."""
    return Measure(name, label, np.asarray(counts, dtype=float).reshape(-1, 2), **more)


def mean(name: str, label: str, values: Sequence[float], **more) -> Measure:
    return share(name, label, [(v, 1) for v in values], **more)


def weights(pictures: int) -> Iterator[np.ndarray]:
    """(draws, pictures): how often each picture is in each resample; the same ones every time."""
    rng = np.random.default_rng(SEED)
    step = max(1, min(DRAWS, CHUNK // max(pictures, 1)))
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
    _, owner = np.unique(np.asarray(pictures, dtype=str), return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    if not count:
        return {m.name: {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0} for m in measures}
    columns = [[_by_picture(m, owner, count) for m in side] for side in (measures, before or ())]
    draws: list[list[np.ndarray]] = [[] for _ in measures]
    for drawn in weights(count):
        for i, m in enumerate(measures):
            value = m.value(drawn @ columns[0][i])
            if before:
                value = value - before[i].value(drawn @ columns[1][i])
            draws[i].append(value)
    found = {}
    for i, m in enumerate(measures):
        value = m.value(columns[0][i].sum(0)) - (before[i].value(columns[1][i].sum(0)) if before else 0.0)
        low, high = np.percentile(np.concatenate(draws[i]), [2.5, 97.5])
        found[m.name] = {"value": float(value), "low": float(low), "high": float(high), "n": count}
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


def _by_picture(measure: Measure, owner: np.ndarray, count: int) -> np.ndarray:
    """(pictures, K): what the answers on each picture add together."""
    sums = np.zeros((count, measure.stats.shape[1]))
    np.add.at(sums, owner, measure.stats)
    return sums
