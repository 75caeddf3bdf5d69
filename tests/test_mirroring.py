import numpy as np
import pytest
import torch
from torch import Tensor

from custom.errors import InputError
from custom.inferers import PrepareTokenBatch, TokenSlidingWindowInferer
from custom.mirroring import MIRRORINGS, Mirroring
from custom.targets.affinities import affinities
from custom.targets.lsds import local_shape_descriptors
from tests.test_inferers import echo, volume

OFFSETS = [(1, 0, 0), (0, -1, 0), (0, 0, 3), (1, 2, 0), (-1, 1, 2)]


def perfect(windows: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """Affinities and LSDs of what is seen: the labels are the image."""
    labels = windows[0, 0].numpy().astype(np.int64)
    affinity, _ = affinities(labels, OFFSETS)
    return torch.from_numpy(np.concatenate([affinity, local_shape_descriptors(labels, 2.0)]))[None]


def blocks(shape: tuple[int, ...]) -> Tensor:
    """Random labels in blocks of two voxels."""
    generator = torch.Generator().manual_seed(0)
    half = [-(-n // 2) for n in shape]
    labels = torch.randint(0, 4, half, generator=generator).float()
    for axis, n in enumerate(shape):
        labels = labels.repeat_interleave(2, axis).narrow(axis, 0, n)
    return labels[None, None]


def test_a_perfect_network_stays_perfect() -> None:
    windows = blocks((7, 9, 12))
    expected = perfect(windows, {})
    found = Mirroring(OFFSETS)(perfect, windows, {})
    _, valid = affinities(windows[0, 0].numpy().astype(np.int64), OFFSETS)
    inside = torch.from_numpy(valid)[None]
    assert torch.equal(found[:, :5][inside], expected[:, :5][inside])
    objects = (windows != 0).expand(-1, 10, -1, -1, -1)
    torch.testing.assert_close(found[:, 5:][objects], expected[:, 5:][objects], rtol=0, atol=1e-5)


def test_it_is_the_mean_over_all_mirrorings() -> None:
    """A network that sees only how its window lies, on an offset that no mirroring hides."""
    windows = torch.zeros(1, 1, 4, 4, 4)
    windows[0, 0, 0, 0, 0] = 1

    def corner(seen: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        return torch.full((1, 1, 4, 4, 4), float(seen[0, 0, -1, -1, -1]))

    found = Mirroring([(0, 0, 1)])(corner, windows, {})
    assert len(MIRRORINGS) == 8
    torch.testing.assert_close(found[..., 0], torch.full((1, 1, 4, 4), 1 / 8))
    torch.testing.assert_close(found[..., -1], torch.zeros(1, 1, 4, 4))  # no neighbour, no image


def test_tokens_are_mirrored_with_their_window() -> None:
    """Every voxel's own inputs come back, whatever the mirroring, when the network echoes them."""
    batch = volume((9, 17, 12))
    inputs, _, _, tokens = PrepareTokenBatch()(batch)
    plain = TokenSlidingWindowInferer((8, 8, 8), 0.5)(inputs, echo(), **tokens)

    mirroring = TokenSlidingWindowInferer((8, 8, 8), 0.5, mirror=True, affinity_offsets=[(9, 9, 9)])
    mirrored = mirroring(inputs, echo(), **tokens)
    torch.testing.assert_close(mirrored[:, 1:], plain[:, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mirror": True}, "needs affinity_offsets"),
        ({"mirror": "false"}, "mirror must be true or false"),
    ],
)
def test_mistakes(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenSlidingWindowInferer((8, 8, 8), **settings)  # type: ignore[arg-type]
