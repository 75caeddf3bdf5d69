"""How large the objects of a segmentation are, as a chart."""

from collections.abc import Sequence
from html import escape
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from custom.outputs.images import SEGMENTATION
from custom.outputs.objects import measured, read_table
from custom.volumes import open_volume

BARS = 24
MOST_VOXELS = 2**28  # that are measured where there is no table
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 480, 200, 40, 12, 168


def object_volumes_um3(store: Path) -> NDArray[np.float64] | None:
    """Volume of every object: from the table of objects, else measured, None of what is too large.

    Args:
        store: a result of inference.
    """
    table = read_table(store)
    if table is not None:
        return np.asarray(table["volume_um3"].to_numpy(), np.float64)
    segmentation = open_volume(store / SEGMENTATION, field="segmentation")
    if prod(segmentation.metadata.shape) > MOST_VOXELS:
        return None
    voxels = measured(segmentation).voxels.astype(np.float64)
    return voxels * np.float64(prod(segmentation.metadata.voxel_size_nm) / 1e9)


def histogram(
    values: NDArray[np.floating], bars: int = BARS
) -> tuple[NDArray[np.int64], float, float]:
    """Counts of values above 0 in bars of equal width of their logarithm.

    Args:
        values: (N,) above 0, at least one.
        bars: how many.

    Returns:
        (bars,) counts, and the decimal logarithms where the first bar begins and the last one ends.
    """
    logs = np.log10(values)
    low, high = float(logs.min()), float(logs.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(logs, bars, (low, high))
    return counts.astype(np.int64), low, high


def size_chart(volumes_um3: NDArray[np.floating]) -> str:
    """Histogram of volumes as inline SVG, the axis logarithmic."""
    counts, low, high = histogram(volumes_um3)
    most = int(counts.max())
    step = (WIDTH - LEFT - 8) / len(counts)
    marks = [
        f'<rect x="{LEFT + i * step:.1f}" y="{_down(n, most):.1f}" width="{step - 1:.1f}" '
        f'height="{BOTTOM - _down(n, most):.1f}" fill="var(--s0)"/>'
        for i, n in enumerate(counts)
        if n
    ]
    marks += [
        f'<text x="{LEFT - 6}" y="{_down(n, most) + 4:.1f}" text-anchor="end">{n:,}</text>'
        for n in sorted({0, most})
    ]
    marks += [
        f'<text x="{LEFT + (power - low) / (high - low) * (WIDTH - LEFT - 8):.1f}" y="188" '
        f'text-anchor="middle">{10.0**power:.2g}</text>'
        for power in _powers(low, high)
    ]
    title = f"Objects by volume, um3: {len(volumes_um3):,} objects"
    return (
        f'<figure style="max-width: 36rem"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(marks)}</svg></figure>"
    )


def _down(count: int, most: int) -> float:
    return BOTTOM - count / most * (BOTTOM - TOP)


def _powers(low: float, high: float) -> Sequence[float]:
    """Whole powers of ten inside, or three places where there are too few."""
    whole = [float(p) for p in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
    return whole if len(whole) > 1 else [low + (high - low) * share for share in (0.1, 0.5, 0.9)]
