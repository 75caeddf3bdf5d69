"""Volumes and laws that all segmentation methods are tried with."""

import numpy as np

from custom.segmentation.fragments import connected_components
from tests.oracles import affinities_by_loop

OFFSETS = [[d if a == axis else 0 for a in range(3)] for d in (1, 3) for axis in range(3)]
IN_PLANE = [offset for offset in OFFSETS if not offset[0]]


def cells(shape=(10, 12, 14), number=7, seed=0):
    """Tightly packed cells."""
    random = np.random.default_rng(seed)
    seeds = random.random((number, 3)) * shape
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    nearest = np.linalg.norm(place[..., None, :] - seeds, axis=-1).argmin(-1)
    return connected_components(nearest + 1)


def perfect(labels, offsets=OFFSETS):
    return (255 * affinities_by_loop(labels, offsets)[0]).astype(np.uint8)


def without_ties(shape=(4, 5, 4), offsets=OFFSETS[:3], seed=0):
    """Random affinities, no two the same; at most 255 of them."""
    number = len(offsets) * np.prod(shape)
    values = 1 + np.random.default_rng(seed).permutation(255)[:number]
    return values.reshape(len(offsets), *shape).astype(np.uint8)


def flipped(affinities, offsets, axis):
    """The same volume seen in a mirror: affinities, and where their offsets lead."""
    mirrored = [[-o if a == axis else o for a, o in enumerate(offset)] for offset in offsets]
    return np.flip(affinities, axis + 1), mirrored
