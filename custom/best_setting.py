"""Which of several segmentation settings is best over volumes."""

from collections.abc import Collection, Mapping, Sequence
from math import fsum, sqrt

from custom.metrics import SCORES


def best_setting(
    volumes: Collection[Sequence[Mapping[str, float]]],
) -> tuple[int, list[dict[str, float]]]:
    """The setting with the lowest mean ``cremi``; of equal ones the lower VOI, then the first.

    Args:
        volumes: for every volume the scores at every setting.

    Returns:
        index: of the best setting.
        means: of the scores at every setting; ``cremi`` is that of the means.
    """
    means = [
        with_cremi({name: _mean([row[name] for row in rows]) for name in SCORES})
        for rows in zip(*volumes, strict=True)
    ]
    index = min(range(len(means)), key=lambda i: (means[i]["cremi"], means[i]["voi"], i))
    return index, means


def with_cremi(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores and, as ``cremi``, the geometric mean of VOI and adapted Rand error."""
    return {**scores, "cremi": sqrt(scores["voi"] * scores["adapted_rand"])}


def _mean(values: Sequence[float]) -> float:
    """The mean, whatever the order of the values."""
    return fsum(values) / len(values)
