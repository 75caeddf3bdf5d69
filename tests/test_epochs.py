from types import SimpleNamespace
from typing import Any

import pytest

from custom.epochs import epoch_length, group_of, optimizer_steps
from custom.errors import InputError


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_groups_tile_every_epoch_and_know_their_size(length: int, steps: int) -> None:
    epochs, batches, sizes = 3, 0, []
    for iteration in range(1, epochs * length + 1):
        group = group_of(iteration, length, steps)
        assert group.begins == (batches == 0)
        batches += 1
        assert group.ends == (batches == group.size)
        if group.ends:
            sizes.append(batches)
            batches = 0
    assert batches == 0
    assert len(sizes) == optimizer_steps(epochs, length, steps)
    assert max(sizes) <= steps
    last = length % steps
    assert sizes.count(last) >= epochs if last else set(sizes) == {steps}


def volumes(*shapes: tuple[int, int, int]) -> Any:
    return [SimpleNamespace(shape=shape) for shape in shapes]


@pytest.mark.parametrize(
    ("shapes", "crop", "batch_size", "processes", "expected"),
    [
        ([(20, 30, 40)], (10, 10, 10), 1, 1, 24),
        ([(20, 30, 40)], (10, 15, 40), 1, 1, 4),
        ([(20, 30, 40), (10, 10, 10)], (10, 10, 10), 1, 1, 25),
        ([(20, 30, 40), (10, 10, 10)], (10, 10, 10), 4, 1, 7),
        ([(20, 30, 40), (10, 10, 10)], (10, 10, 10), 4, 2, 4),
        ([(11, 10, 10)], (10, 10, 10), 1, 1, 2),
        ([(10, 10, 10)], (10, 10, 10), 8, 4, 1),
    ],
)
def test_a_pass_has_as_many_crops_as_fill_the_volumes(
    shapes: list[Any], crop: tuple[int, ...], batch_size: int, processes: int, expected: int
) -> None:
    assert epoch_length(None, volumes(*shapes), crop, batch_size, processes) == expected


def test_iterations_that_are_given_are_taken() -> None:
    assert epoch_length(17, volumes((10, 10, 10)), (10, 10, 10), 1) == 17


@pytest.mark.parametrize("value", [0, -1, 2.5, "10", True])
def test_lengths_that_cannot_be_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"iterations_per_epoch, if not null, must be a whole"):
        epoch_length(value, [], (1, 1, 1), 1)
    with pytest.raises(InputError, match=r"accumulation_steps must be a whole number from 1 on"):
        optimizer_steps(1, 1, value)
    with pytest.raises(InputError, match=r"epochs must be a whole number from 1 on"):
        optimizer_steps(value, 1)
