import pytest
import torch

from custom.features.triplane import PlaneGrid, upsample
from custom.planes import NORMAL_AXIS, PLANES, interpolation_matrix, upsample_batch


def test_the_normal_is_the_axis_that_the_planes_name_lacks():
    assert {plane: "zyx"[axis] for plane, axis in NORMAL_AXIS.items()} == {
        plane: ({"x", "y", "z"} - set(plane)).pop() for plane in PLANES
    }


def test_a_matrix_typed_by_hand():
    found = interpolation_matrix(4, 3, start=-1.0, step=2.0)
    expected = [[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.75, 0.25], [0.0, 0.25, 0.75]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_voxels_outside_all_centres_have_the_nearest_entrys_value():
    found = interpolation_matrix(9, 2, start=3.0, step=1.5)
    assert found[:4, 0].tolist() == [1.0] * 4
    assert found[5:, 1].tolist() == [1.0] * 4


def test_every_member_of_a_batch_has_its_own_placement():
    shape, generator = (5, 9, 8), torch.Generator().manual_seed(0)
    values = torch.rand(3, 2, 4, 9, 3, generator=generator)
    placement = torch.tensor([[[-1.5, 0, -k], [2.25, 1, 7 / (2 + k)]] for k in range(3)])
    found = upsample_batch(values, placement, shape, "xz")
    for k in range(3):
        alone = upsample(PlaneGrid.placed(values[k], placement[k]), shape, "xz")
        torch.testing.assert_close(found[k], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_upsampling_keeps_the_dtype(dtype):
    values = torch.ones(1, 1, 6, 2, 2, dtype=dtype)
    placement = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 4.0, 4.0]]])
    found = upsample_batch(values, placement, (6, 8, 8), "xy")
    assert found.dtype == dtype
    assert (found == 1).all(), "constants stay as they are"


@pytest.mark.parametrize("plane", PLANES)
def test_gradients_reach_every_entry(plane):
    shape = [4, 4, 4]
    shape[NORMAL_AXIS[plane]] = 9
    values = torch.zeros(1, 1, *shape, requires_grad=True)
    step = [2.25, 2.25, 2.25]
    step[NORMAL_AXIS[plane]] = 1.0
    placement = torch.tensor([[[0.0, 0.0, 0.0], step]])
    upsample_batch(values, placement, (9, 9, 9), plane).sum().backward()
    assert values.grad is not None
    assert (values.grad > 0).all()
    assert values.grad.sum() == pytest.approx(9**3)
