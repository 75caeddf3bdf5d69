from typing import Any

import pytest
import torch

from custom.artefacts import RandBlackoutd, RandMissingSectionsd, RandStreaksd
from custom.blur import RandBlurd, RandDefocusd
from custom.draws import RandomChanged
from custom.errors import InputError
from custom.membranes import RandMembranesd
from custom.shifts import RandShiftedSectionsd
from tests.crops import random_crop

KINDS = (
    RandBlackoutd,
    RandBlurd,
    RandDefocusd,
    RandMembranesd,
    RandMissingSectionsd,
    RandShiftedSectionsd,
    RandStreaksd,
)


@pytest.mark.parametrize("prob", [-0.1, 1.01, float("nan"), True, "0.5", None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_probability_is_from_0_to_1(kind: Any, prob: object) -> None:
    message = f"prob of {kind.__name__} must be a number from 0 to 1, got {prob!r}"
    with pytest.raises(InputError, match=message):
        kind("image", prob=prob)


MISTAKES = [
    (RandMissingSectionsd, {"sections": (3, 1)}, r"sections of .* whole numbers from 1 on.*\(3, 1"),
    (RandDefocusd, {"sections": (0, 2)}, "sections of RandDefocusd must be"),
    (RandShiftedSectionsd, {"sections": 1.5}, "whole numbers from 1 on, low <= high, got 1.5"),
    (RandShiftedSectionsd, {"max_shift": 0}, "max_shift .* whole number from 1 on, got 0"),
    (RandShiftedSectionsd, {"max_shift": [1, 2]}, "max_shift .* whole number from 1 on, got"),
    (RandDefocusd, {"axis": "w"}, "axis of RandDefocusd is 'w'; known are auto, z, y, x"),
    (RandStreaksd, {"axis": 2}, "axis of RandStreaksd is 2; known are auto, z, y, x"),
    (RandBlurd, {"axes": "xyz"}, "axes of RandBlurd is 'xyz'"),
    (RandBlurd, {"sigma": (-1.0, 1.0)}, "sigma of RandBlurd must be .* numbers from 0 on"),
    (RandBlurd, {"sigma": (2.0, 1.0)}, r"low <= high, got \(2.0, 1.0\)"),
    (RandBlurd, {"sigma": float("nan")}, "sigma of RandBlurd must be .*, got nan"),
    (RandBlurd, {"sigma": (0.0, float("inf"))}, "sigma of RandBlurd must be"),
    (RandBlurd, {"sigma": (1, 2, 3)}, "sigma of RandBlurd must be"),
    (RandMembranesd, {"radius": -1}, "radius of RandMembranesd must be .* from 1 on.*, got -1"),
    (RandMembranesd, {"radius": (1, True)}, "radius of RandMembranesd must be"),
    (RandMembranesd, {"operations": ["errode"]}, "'errode'; did you mean 'erode'"),
    (RandMembranesd, {"operations": []}, "operations of .* must name erode or dilate"),
    (RandBlackoutd, {"size": (0.1, 1.5)}, "size of RandBlackoutd must be .* from 0 to 1"),
    (RandBlackoutd, {"boxes": (2, 1)}, "boxes of RandBlackoutd must be"),
    (RandBlackoutd, {"hide_labels": "false"}, "hide_labels of RandBlackoutd must be true or false"),
    (RandMissingSectionsd, {"hide_tokens": 1}, "hide_tokens of .* must be true or false"),
    (RandMissingSectionsd, {"value": "black"}, "value of RandMissingSectionsd must be"),
    (RandStreaksd, {"thickness": 0}, "thickness of RandStreaksd must be"),
    (RandStreaksd, {"strength": (0.3, -0.3)}, "strength of RandStreaksd must be"),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"), MISTAKES, ids=lambda v: getattr(v, "__name__", str(v))[:40]
)
def test_a_mistake_is_one_sentence(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        kind("image", 0.5, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not RandBlurd])
def test_volumes_of_another_frame_are_refused(kind: type[RandomChanged]) -> None:
    sample = {**random_crop(), "context_image": torch.zeros(1, 3, 3, 3)}
    transform = kind(["image", "context_image"], prob=1.0)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"must be volumes of one shape, got \[\(3, 3, 3\), \(6"):
        transform(sample)
