import numpy as np
import pytest
import torch
from torch import Tensor

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.inferers import PrepareTokenBatch, TokenSlidingWindowInferer
from custom.mirroring import Mirroring
from custom.networks.context import sample_context
from custom.planes import PLANES, upsample_batch
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


IN_PLANE = [(0, 1, 0), (0, 0, -3), (0, 1, 2)]
OF_SECTIONS = [1, 2, 4, 5, 8, 9]  # LSDs of a section in those of a volume of one section


def perfect_sections(windows: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """Affinities in the plane and the six LSDs of every section."""
    labels = windows[0, 0].numpy().astype(np.int64)
    affinity, _ = affinities(labels, IN_PLANE)
    sections = [local_shape_descriptors(one[None], 2.0)[OF_SECTIONS] for one in labels]
    return torch.from_numpy(np.concatenate([affinity, np.concatenate(sections, axis=1)]))[None]


def test_a_perfect_network_of_sections_stays_perfect() -> None:
    windows = blocks((3, 9, 12))
    calls = []

    def counted(seen: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        calls.append(seen)
        return perfect_sections(seen, tokens)

    found = Mirroring(IN_PLANE, num_lsds=6, axes=(1, 2))(counted, windows, {})
    expected = perfect_sections(windows, {})
    assert len(calls) == 4
    _, valid = affinities(windows[0, 0].numpy().astype(np.int64), IN_PLANE)
    inside = torch.from_numpy(valid)[None]
    assert torch.equal(found[:, :3][inside], expected[:, :3][inside])
    objects = (windows != 0).expand(-1, 6, -1, -1, -1)
    torch.testing.assert_close(found[:, 3:][objects], expected[:, 3:][objects], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 6, 10])
def test_classes_are_averaged_as_they_are(num_classes: int) -> None:
    """As many channels as LSDs have make no LSDs of classes."""
    windows = torch.rand(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))

    def network(seen: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        return torch.cat([seen * k for k in range(num_classes)], 1)

    found = Mirroring((), num_lsds=0)(network, windows, {})
    torch.testing.assert_close(found, network(windows, {}))


def test_an_inferer_of_sections_mirrors_in_the_plane() -> None:
    batch = volume((3, 8, 8))
    inputs, _, _, tokens = PrepareTokenBatch()(batch)
    calls = []

    def network(windows: Tensor, **tokens: Tensor) -> Tensor:
        calls.append(windows)
        return windows

    settings = {"mirror": True, "affinity_offsets": [(0, 1, 0)], "dimensions": 2}
    TokenSlidingWindowInferer((3, 8, 8), layout=ChannelLayout(1, 0), **settings)(  # type: ignore[arg-type]
        inputs, network, **tokens
    )
    assert len(calls) == 4
    for seen in calls:  # sections stay where they are
        torch.testing.assert_close(seen.mean((3, 4)), inputs.mean((3, 4)))


def test_a_context_is_mirrored_with_its_window() -> None:
    """As above, when the network echoes what the context says of each voxel."""

    def echo_context(image: Tensor, **given: Tensor) -> Tensor:
        shape = image.shape[2:]
        raw = sample_context(given["context_image"], given["context_placement"], (1, 1, 1), shape)
        inner = given["context_image"].shape[2:]
        tokens = [
            sample_context(
                upsample_batch(
                    given[f"context_tokens_{p}"], given[f"context_placement_{p}"], inner, p
                ),
                given["context_placement"],
                (1, 1, 1),
                shape,
            )
            for p in PLANES
        ]
        return torch.cat([raw, raw, *tokens], 1)

    inputs, _, _, tokens = PrepareTokenBatch()(volume((9, 17, 12)))
    settings = {"roi_size": (8, 7, 5), "overlap": 0.5, "context_factor": [2, 3, 2]}
    plain = TokenSlidingWindowInferer(**settings)(inputs, echo_context, **tokens)
    offsets = [(9, 9, 9)]
    mirrored = TokenSlidingWindowInferer(**settings, mirror=True, affinity_offsets=offsets)(
        inputs, echo_context, **tokens
    )
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
