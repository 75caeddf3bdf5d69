"""Local shape descriptors in float64, object by object: slow, and by other means than ours."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter


def largest_differences(
    candidates: Sequence[NDArray[np.float32]],
    labels: NDArray[np.integer],
    sigma: Sequence[float],
    voxel_size: Sequence[float],
    ids: Iterable[int] | None = None,
) -> list[float]:
    """Largest difference of each candidate to the definition evaluated in float64.

    Args:
        candidates: descriptors (10, D, H, W) of ``labels``.
        labels: (D, H, W), 0 is background.
        sigma: z, y, x, in the unit of ``voxel_size``.
        voxel_size: z, y, x.
        ids: labels that are compared; all when left out.
    """
    found, numbers = np.unique(labels, return_inverse=True)
    boxes = find_objects(numbers.reshape(labels.shape) + 1)
    wanted = set(found.tolist() if ids is None else ids) - {0}
    worst = [0.0] * len(candidates)
    for label, box in zip(found.tolist(), boxes, strict=True):
        if label in wanted:
            mask = labels[box] == label
            expected = object_descriptors(mask, sigma, voxel_size)[:, mask]
            for i, candidate in enumerate(candidates):
                difference = np.abs(candidate[:, *box][:, mask] - expected)
                worst[i] = max(worst[i], float(difference.max()))
    return worst


def object_descriptors(
    mask: NDArray[np.bool_], sigma: Sequence[float], voxel_size: Sequence[float]
) -> NDArray[np.float64]:
    """Descriptors (10, D, H, W) of one object; they mean something where ``mask`` is True.

    Moments are taken about the middle of the object's box, as lsd-lite takes them about the array's
    corner, but in float64.
    """
    smooth = partial(
        gaussian_filter,
        sigma=[s / v for s, v in zip(sigma, voxel_size, strict=True)],
        output=np.float64, mode="constant", truncate=3.0,
    )  # fmt: skip
    places = [(np.arange(n) - n // 2) * v for n, v in zip(mask.shape, voxel_size, strict=True)]
    at = np.meshgrid(*places, indexing="ij")
    inside = mask.astype(np.float64)
    mass = smooth(inside)
    known = np.where(mask, mass, 1)
    mean = [smooth(inside * x) / known for x in at]
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    moments = {(i, j): smooth(inside * at[i] * at[j]) / known - mean[i] * mean[j] for i, j in pairs}
    variance = [np.maximum(moments[i, i], 1e-3) for i in range(3)]
    channels = [(mean[i] - at[i]) / sigma[i] / 2 + 0.5 for i in range(3)]
    channels += [variance[i] / sigma[i] ** 2 for i in range(3)]
    channels += [moments[i, j] / np.sqrt(variance[i] * variance[j]) / 2 + 0.5 for i, j in pairs[3:]]
    return np.clip([*channels, mass], 0, 1)
