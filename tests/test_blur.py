import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth
from scipy import ndimage

from custom.blur import RandBlurd, RandDefocusd, blurred
from tests.crops import ISOTROPIC, SHAPE, VOXEL_SIZE, all_planes, assert_unchanged, copied


def test_an_even_crop_stays_even_up_to_its_border() -> None:
    even = torch.full((1, 9, 10, 11), 0.75)
    torch.testing.assert_close(blurred(even, 2.0, (0, 1, 2)), even)
    assert GaussianSmooth(2.0)(even).min() < 0.4, "MONAI's no longer greys the border: use it"


@pytest.mark.parametrize(
    ("axes", "voxel_size", "spread"),
    [
        ("auto", ISOTROPIC, (0, 1, 2)),
        ("auto", VOXEL_SIZE, (1, 2)),
        ("zx", ISOTROPIC, (0, 2)),
        ("z", VOXEL_SIZE, (0,)),
    ],
    ids=str,
)
def test_a_point_spreads_along_the_axes_and_keeps_its_sum(
    axes: str, voxel_size: tuple[float, ...], spread: tuple[int, ...]
) -> None:
    point = torch.zeros(1, 11, 13, 15)
    point[0, 5, 6, 7] = 1
    sample = {"image": point, "voxel_size_nm": torch.tensor(voxel_size)}
    found = RandBlurd("image", 1.0, sigma=0.8, axes=axes)(sample)["image"]
    assert found.sum() == pytest.approx(1, abs=1e-5)
    place = torch.arange(15.0)
    for axis in range(3):
        other = [1 + a for a in range(3) if a != axis]
        profile = found.sum(other)[0]
        centre = (5, 6, 7)[axis]
        variance = float((profile * (place[: len(profile)] - centre) ** 2).sum())
        assert variance == pytest.approx(0.64 if axis in spread else 0, abs=0.02)


def test_sigma_is_drawn_from_its_range() -> None:
    transform = RandBlurd("image", 1.0, sigma=(0.5, 2.0)).set_random_state(0)
    drawn = []
    for _ in range(2000):
        transform.randomize({})
        drawn.append(transform.sigma)
    counts, _ = np.histogram(drawn, 5, (0.5, 2.0))
    assert counts.sum() == 2000 and counts.min() > 320 and counts.max() < 480


def test_sections_out_of_focus_are_blurred_in_their_own_plane() -> None:
    transform = RandDefocusd("image", 1.0, sections=(1, 2), sigma=(1.0, 3.0))
    axes = set()
    for seed in range(20):
        sample = all_planes(seed=seed)
        kept = copied(sample)
        found = transform.set_random_state(seed)(sample)
        assert_unchanged(found, kept, but=("image",))
        assert_unchanged(sample, kept)
        sections = transform.sections
        axes.add(sections.axis)
        for number in range(SHAPE[sections.axis]):
            section = kept["image"][0].select(sections.axis, number).numpy()
            if sections.start <= number < sections.stop:
                section = ndimage.gaussian_filter(section, transform.sigma, mode="nearest")
            changed = found["image"][0].select(sections.axis, number)
            torch.testing.assert_close(changed, torch.from_numpy(section))
    assert axes == {0, 1, 2}
