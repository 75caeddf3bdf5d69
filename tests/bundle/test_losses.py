"""The library of losses: every entry trains, by name, from any folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom.channels import ChannelLayout, channel_layout
from custom.errors import InputError
from custom.preflight import user_mistake
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd
from tests.bundle import tiny
from tests.bundle.overlays import EXPERIMENTS, content
from tests.bundle.test_runs import assert_sound, history, untrained
from tests.bundle.tiny import BUNDLE, CONFIGS

pytestmark = pytest.mark.slow

LIBRARY: dict[str, Any] = json.loads((CONFIGS / "losses.json").read_text())
ANY = ("cross_entropy", "weighted_cross_entropy", "focal", "dice", "tversky", "focal_dice")
OUTPUTS = {
    "affinities_lsds": set(LIBRARY),
    "affinities": {name for name in LIBRARY if not name.endswith("_lsds")}
    | {"boundary_affinity_lsds"},
    "labels": set(ANY),
}
OFFSETS = [[1, 0, 0], [0, 2, 0], [0, 0, 3]]
SHAPE = (4, 9, 10)
NAMES = [(output, name) for output, names in OUTPUTS.items() for name in sorted(names)]
REFUSED = [(o, n) for o, names in OUTPUTS.items() for n in sorted(set(LIBRARY) - names)]


def library_loss(
    name: str, output_type: str, balance: Any = None, offsets: Any = OFFSETS, dimensions: int = 3
) -> nn.Module:
    """A loss as a run would make it, of a network with these outputs; nothing is measured."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    settings = {
        "output_type": output_type,
        "dimensions": dimensions,
        "affinity_offsets": offsets,
        "bundle_root": str(BUNDLE),
        "balance": balance,
        "loss": f"%{CONFIGS / 'losses.json'}#{name}",
    }
    for key, value in settings.items():
        parser[key] = value
    parser.resolve_macro_and_relative_ids()
    parser["loss"] = without_measuring(parser["loss"])
    loss: nn.Module = parser.get_parsed_content("loss")
    return loss


def without_measuring(part: Any) -> Any:
    """A part of a configuration, with the given balance wherever one would be measured."""
    if not isinstance(part, dict):
        return part
    if part.get("_target_") == "custom.class_balance.class_balance":
        return "@balance"
    return {key: without_measuring(value) for key, value in part.items()}


def batch(layout: ChannelLayout, offsets: Any = OFFSETS, dimensions: int = 3) -> tuple[Any, Tensor]:
    """Two raw crops and their targets: blocks, bright where the label is odd."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (2, 2, 3, 5)), np.ones((1, 2, 3, 2), int))
    images = torch.from_numpy(labels % 2 + 0.1 * rng.normal(size=labels.shape)).float()[:, None]
    settings = target_settings(
        offsets,
        4.0,
        boundary_power=1.0,
        output_type=layout.output_type,
        dimensions=dimensions,
    )
    transform = LabelsToTargetsd(settings)
    samples = [
        transform(
            {
                "image": image,
                "labels": torch.from_numpy(of_crop % 2 if layout.num_classes else of_crop)[None],
                "mask": torch.ones(1, *SHAPE, dtype=torch.bool),
                "voxel_size_nm": torch.tensor([2.0, 1.0, 1.5]),
            }
        )
        for image, of_crop in zip(images, labels, strict=True)
    ]
    return images, torch.stack([sample["label"] for sample in samples])


# --- each entry ---


@pytest.mark.parametrize(("output_type", "name"), NAMES)
def test_an_entry_trains_ten_steps(output_type: str, name: str) -> None:
    torch.manual_seed(0)
    layout = channel_layout(output_type, OFFSETS, 4.0)
    images, target = batch(layout)
    network = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, layout.num_outputs, 3, padding=1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    loss = library_loss(name, output_type)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(network(images), target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.isfinite(values).all()
    assert values[-1] < 0.95 * values[0]
    named = getattr(loss, "components", {})
    assert named
    assert all(part.isfinite() for part in named.values())


@pytest.mark.parametrize("name", sorted(OUTPUTS["affinities_lsds"]))
def test_an_entry_takes_sections(name: str) -> None:
    offsets = [[0, 2, 0], [0, 0, 3]]
    layout = channel_layout("affinities_lsds", offsets, 4.0, dimensions=2)
    assert layout.num_lsds == 6
    _, target = batch(layout, offsets, dimensions=2)
    loss = library_loss(name, "affinities_lsds", offsets=offsets, dimensions=2)
    prediction = torch.zeros(2, layout.num_outputs, *SHAPE, requires_grad=True)
    value = loss(prediction, target)
    value.backward()
    assert value > 0
    assert prediction.grad is not None
    assert prediction.grad[:, layout.affinities].any()


@pytest.mark.parametrize(("output_type", "name"), REFUSED)
def test_an_entry_says_what_the_network_lacks(output_type: str, name: str) -> None:
    with pytest.raises(Exception) as caught:  # wrapped by MONAI
        library_loss(name, output_type)
    mistake = user_mistake(caught.value)
    assert isinstance(mistake, InputError)
    assert f"which the network does not predict with output_type '{output_type}'" in str(mistake)


@pytest.mark.parametrize("output_type", OUTPUTS)
@pytest.mark.parametrize("name", ANY)
def test_the_general_entries_train_every_channel_of_the_network(
    name: str, output_type: str
) -> None:
    layout = channel_layout(output_type, OFFSETS, 4.0)
    _, target = batch(layout)
    prediction = torch.zeros(2, layout.num_outputs, *SHAPE, requires_grad=True)
    library_loss(name, output_type)(prediction, target).backward()
    assert prediction.grad is not None
    assert prediction.grad.flatten(2).abs().amax(dim=(0, 2)).min() > 0


@pytest.mark.parametrize(("output_type", "name"), NAMES)
def test_class_balance_reaches_every_entry(output_type: str, name: str) -> None:
    layout = channel_layout(output_type, OFFSETS, 4.0)
    _, target = batch(layout)
    weights = [0.2, 5.0] if output_type == "labels" else [0.2, 5.0, 3.0]
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, layout.num_outputs, *SHAPE, generator=generator)
    plain = library_loss(name, output_type)(prediction, target)
    try:
        balanced = library_loss(name, output_type, balance=weights)(prediction, target)
    except Exception as error:  # wrapped by MONAI
        assert "both weigh the positives" in str(user_mistake(error))
        assert "focal" in name
    else:
        assert abs(balanced - plain) > 1e-3


def test_everything_of_ours_waits_for_the_bootstrap() -> None:
    def parts(value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, dict):
            return []
        own = [value] if "_target_" in value else []
        return own + [part for child in value.values() for part in parts(child)]

    assert all(part.get("_requires_") == "@bootstrap" for part in parts(LIBRARY))
    assert all(part["_target_"].startswith("custom.") for part in parts(LIBRARY))


def test_the_default_loss_is_in_the_library() -> None:
    train = json.loads((CONFIGS / "train.json").read_text())
    assert LIBRARY["boundary_affinity_lsds"] == train["loss"]


# --- runs ---


def test_a_loss_by_name_from_inside_the_bundle(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = untrained(finished, tmp_path / "project")
    monkeypatch.chdir(BUNDLE)
    tiny.run("training", folder, loss="%configs/losses.json#focal")
    assert_sound(folder, epochs=2)
    assert {"loss_affinity_focal", "loss_lsd"} < set(history(folder)[0])


def test_a_loss_by_name_from_any_folder_and_the_balance_survives_a_resume(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = untrained(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    changes = {
        "loss": f"%{CONFIGS / 'losses.json'}#affinity_bce",
        "output_type": "affinities",
        "class_balance": "measured",
    }
    tiny.run("training", folder, **changes, epochs=1)
    balance = folder / "model" / "class_balance.json"
    before = balance.read_bytes(), balance.stat().st_mtime_ns
    weights = json.loads(before[0])["weights"]
    assert len(weights) == 4
    assert len(set(weights)) == 4
    tiny.run("training", folder, **changes)
    assert (balance.read_bytes(), balance.stat().st_mtime_ns) == before
    assert_sound(folder, epochs=2)


def test_classes_are_weighted_by_what_is_measured(finished: Path, tmp_path: Path) -> None:
    folder = untrained(finished, tmp_path / "project")
    changes = {"output_type": "labels", "class_of_labels": "foreground"}
    loss = f"%{CONFIGS / 'losses.json'}#weighted_cross_entropy"
    tiny.run("training", folder, loss=loss, **changes, epochs=1)
    weights = json.loads((folder / "model" / "class_balance.json").read_text())["weights"]
    assert weights == [1, 1]  # cells without background: a class that does not occur has 1
    assert "loss_class_weighted_cross_entropy" in history(folder)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"loss": {"_target_": "custom.class_losses.ClassLoss", "layout": "@channels"}},
            "ClassLoss needs classes, which the network does not predict with output_type "
            "'affinities_lsds'",
        ),
        ({"class_balance": "mesured"}, "class_balance must be null, 'measured' or a list"),
        ({"class_balance": [1, 2]}, "must be one positive number or 4 of them, got [1, 2]"),
    ],
)
def test_a_loss_that_does_not_fit_ends_in_one_sentence(
    finished: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = untrained(finished, tmp_path / "project")
    assert words in tiny.mistake(lambda: tiny.run("training", folder, **changes))
    assert not (folder / "model").exists()


# --- overlays ---


OVERLAYS = [name for name in EXPERIMENTS if name.startswith("loss_")]


def test_every_entry_has_an_overlay() -> None:
    assert {name.removeprefix("loss_") for name in OVERLAYS} == set(LIBRARY)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_has_the_entry_of_the_library(name: str) -> None:
    assert content(name)["loss"] == LIBRARY[name.removeprefix("loss_")]
