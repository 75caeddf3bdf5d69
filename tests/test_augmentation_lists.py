import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from custom.augmentation_lists import check_augmentation
from custom.errors import InputError
from custom.transforms import LabelsToTargetsd
from tests.crops import VOXEL_SIZE, all_planes, copied

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
TRAIN = BUNDLE / "configs" / "train.json"
LISTS: Mapping[str, list[dict[str, Any]]] = json.loads(TRAIN.read_text())["augmentations"]
RANDOM = [
    (name, number)
    for name, transforms in LISTS.items()
    for number, transform in enumerate(transforms)
    if "prob" in transform
]
OVERLAY = BUNDLE / "configs" / "experiments" / "strong_augmentation.json"


def parsed(key: str, *overlays: Path, **changes: Any) -> Any:
    parser = ConfigParser()
    parser.read_config([str(TRAIN), *map(str, overlays)])
    parser["bundle_root"] = str(BUNDLE)
    for name, value in changes.items():
        parser[name] = value
    return parser.get_parsed_content(key)


@pytest.mark.parametrize(("name", "number"), RANDOM, ids=str)
def test_a_probability_means_what_it_says(name: str, number: int) -> None:
    key, total, sample = f"augmentations#{name}#{number}", 900, all_planes()
    for prob in (0.0, 0.3, 1.0):
        transform = parsed(key, **{f"{key}#prob": prob}).set_random_state(5)
        changed = 0
        for _ in range(total if prob == 0.3 else 60):
            found = transform(sample)
            changed += not torch.equal(torch.as_tensor(found["image"]), sample["image"])
        if prob == 0.3:  # four standard deviations
            assert abs(changed - 0.3 * total) < 4 * (0.3 * 0.7 * total) ** 0.5
        else:
            assert changed == 60 * prob


@pytest.mark.parametrize("name", LISTS)
def test_a_list_keeps_names_shapes_and_types_and_its_argument(name: str) -> None:
    chain, sample = Compose(parsed(f"augmentations#{name}")), all_planes(voxel_size=VOXEL_SIZE)
    kept = copied(sample)
    seen = set()
    for seed in range(60):
        chain.set_random_state(seed)
        found = chain(sample)
        assert found.keys() == sample.keys()
        for key, value in kept.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
            assert torch.equal(sample[key], value), key
            seen |= {key} if not torch.equal(torch.as_tensor(found[key]), value) else set()
        if name == "strong":
            assert found["image"].abs().max() <= 1
        elif name == "mild":
            assert found["image"].abs().max() <= 1.2
    everything = {"image", "labels", "mask", "tokens_xy", "tokens_xz", "tokens_yz"}
    assert seen == {"none": set(), "mild": {"image"}, "strong": everything}[name]


@pytest.mark.parametrize("name", LISTS)
def test_what_changes_all_grey_values_alike_changes_those_of_the_context_too(name: str) -> None:
    sample = all_planes()
    sample["context_image"] = sample["image"].clone()
    alike = [
        parsed(f"augmentations#{name}#{number}").set_random_state(0)
        for number, transform in enumerate(LISTS[name])
        if "context_image" in transform["keys"] and "prob" in transform
    ]
    assert len(alike) == {"none": 0, "mild": 2, "strong": 3}[name]
    for transform in alike:
        changed = set()
        for _ in range(20):
            found = transform(sample)
            assert torch.equal(found["context_image"], found["image"])
            changed.add(torch.equal(torch.as_tensor(found["image"]), sample["image"]))
        assert changed == {True, False}


def test_the_same_seed_gives_the_same_changes() -> None:
    chain = Compose(parsed("augmentations#strong"))
    first, second = (
        [chain.set_random_state(seed)(all_planes()) for seed in (1, 2, 3)] for _ in "ab"
    )
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)
    assert not torch.equal(torch.as_tensor(first[0]["image"]), torch.as_tensor(first[1]["image"]))


def test_training_takes_the_mild_list_and_the_overlay_the_strong_one() -> None:
    for overlays, name in (((), "mild"), ((OVERLAY,), "strong")):
        found = parsed("train#preprocessing", *overlays).transforms
        expected = [t["_target_"].rpartition(".")[2] for t in LISTS[name]]
        assert [type(t).__name__ for t in found[1].transforms] == expected
        assert isinstance(found[2], LabelsToTargetsd)


def test_orientations_know_what_the_targets_of_the_configuration_tell_apart() -> None:
    flat = OVERLAY.parent / "two_dimensions.json"
    for overlays, apart in (((), False), ((flat,), True)):
        z, y, x = parsed("train#preprocessing", *overlays).transforms[0].told_apart
        assert (z != y, y != x) == (apart, False)


def test_the_strong_list_has_every_change_there_is() -> None:
    named = {transform["_target_"].rpartition(".")[0] for transform in LISTS["strong"]}
    assert named == {"", "custom.artefacts", "custom.blur", "custom.membranes", "custom.shifts"}


def noise(**changes: Any) -> dict[str, Any]:
    return {"augmentation": [{"_target_": "RandGaussianNoised", "keys": "image", **changes}]}


MISTAKES = [
    (noise(prob=1.5), "prob of RandGaussianNoised must be a number from 0 to 1, got 1.5"),
    (noise(prob=-0.1), "prob of RandGaussianNoised must be a number from 0 to 1"),
    (noise(prob=0.5, std=-1), "std of RandGaussianNoised must be a number from 0 on, got -1"),
    (noise(prob=0.5, gamma=[2, 1]), r"gamma of .* low <= high, got \[2, 1\]"),
    (noise(prob=0.5, gamma=[-1, 2]), r"gamma of .* from 0.01 on, .* got \[-1, 2\]"),
    (noise(prob=0.5, sigma_y=[-1.0, 2]), r"sigma_y of .* numbers from 0 on"),
    ({"augmentations": {"mine": [{"_target_": "a.B", "factors": [0.2, 0.1]}]}}, "factors of B"),
    (
        {"augmentation": [{"_target_": "OneOf", "transforms": noise(prob=2)["augmentation"]}]},
        "prob of RandGaussianNoised must be",
    ),
]


@pytest.mark.parametrize(("config", "message"), MISTAKES, ids=lambda v: str(v)[:50])
def test_what_monai_would_take_in_silence_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_augmentation(config)


def test_the_lists_as_they_are_references_and_other_configurations_pass() -> None:
    check_augmentation({"augmentation": "@augmentations#mild", "augmentations": LISTS})
    check_augmentation(noise(prob="@noise_prob", std="$0.1 * 2", factors=0.1))
    check_augmentation({"augmentation": []})
    check_augmentation({})
