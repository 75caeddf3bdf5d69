import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from safetensors.torch import load_file
from torch import nn

from custom.errors import InputError
from custom.model_files import BestModel, model_description, read_description
from custom.scores import DICE
from custom.targets.classes import ClassSettings
from custom.targets.settings import TargetSettings


def validated(best: BestModel, *vois: float) -> None:
    """Validations with these scores, one per epoch; the weights are the epoch's number."""
    epochs = iter(range(1, len(vois) + 1))
    engine = Engine(lambda engine, batch: None)
    best.attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def score(engine: Engine) -> None:
        state: Any = engine.state
        state.epoch = next(epochs)
        nn.init.constant_(best.network.weight, state.epoch)  # type: ignore[arg-type]
        state.metrics = {"voi": vois[state.epoch - 1], "adapted_rand": 0.5}
        state.volume_scores = {"cube": {"voi": vois[state.epoch - 1]}}
        state.segmentation = {"bias": -state.epoch}
        state.segmentation_method = "custom.segmentation.X"

    for _ in vois:
        engine.run([0])


def test_the_model_is_that_of_the_lowest_voi(tmp_path: Path) -> None:
    best = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {"features": {"window": 3}})
    validated(best, 2.0, 1.0, 1.5, 1.0)
    described = json.loads((tmp_path / "model.json").read_text())
    assert set(described.pop("sha256")) == {"model.pt", "model.safetensors"}
    assert described == {
        "features": {"window": 3},
        "epoch": 2,
        "segmentation": {"bias": -2},
        "segmentation_method": "custom.segmentation.X",
        "key_metric": "voi",
        "validation": {"voi": 1.0, "adapted_rand": 0.5},
        "volume_scores": {"cube": {"voi": 1.0}},
    }
    for weights in (
        torch.load(tmp_path / "model.pt", weights_only=True),
        load_file(tmp_path / "model.safetensors"),
    ):
        assert weights["weight"].item() == 2
    assert len(list(tmp_path.iterdir())) == 3
    files = [tmp_path / f"model.{kind}" for kind in ("pt", "safetensors", "json")]
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o644"] * 3


class Twice(nn.Module):
    """Has its layer under two names, as MONAI's DynUNet has all of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Linear(1, 1, bias=False)
        self.weight = self.one.weight


def test_weights_with_two_names_are_saved_under_both(tmp_path: Path) -> None:
    validated(BestModel(str(tmp_path), Twice(), {}), 1.0)
    for weights in (
        torch.load(tmp_path / "model.pt", weights_only=True),
        load_file(tmp_path / "model.safetensors"),
    ):
        Twice().load_state_dict(weights)
        assert {weight.item() for weight in weights.values()} == {1}


def test_a_network_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    def best(norm: str) -> BestModel:
        definition = {"_target_": "A", "norm": "@unet_norm"}
        config = {"network_def": definition, "unet_norm": norm}
        return BestModel(str(tmp_path), nn.Linear(1, 1), {"config": config})

    state = best("group").state_dict()
    best("group").load_state_dict(state)
    with pytest.raises(ValueError, match=r'differs in: unet_norm \("instance", not "group"\)'):
        best("instance").load_state_dict(state)


def test_training_goes_on_only_by_the_score_that_it_began_with(tmp_path: Path) -> None:
    first = BestModel(str(tmp_path), nn.Linear(1, 1), {})
    second = BestModel(str(tmp_path), nn.Linear(1, 1), {}, key=DICE)
    with pytest.raises(ValueError, match="chosen by another score than dice"):
        second.load_state_dict(first.state_dict())


def test_a_worse_model_after_a_restart_does_not_replace_the_best(tmp_path: Path) -> None:
    first = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    validated(first, 1.0)
    second = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    second.load_state_dict({"voi": first.best})  # as checkpoints were before they knew features
    second.load_state_dict(first.state_dict())
    validated(second, 1.5)
    assert json.loads((tmp_path / "model.json").read_text())["validation"]["voi"] == 1.0


def test_a_model_that_the_checkpoint_does_not_know_of_yet_stays_the_best(tmp_path: Path) -> None:
    """The run was stopped between the model and the checkpoint."""
    first = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    validated(first, 2.0)
    state = first.state_dict()
    validated(first, 1.0)
    second = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    second.load_state_dict(state)
    validated(second, 1.5)
    assert json.loads((tmp_path / "model.json").read_text())["validation"]["voi"] == 1.0


@pytest.mark.parametrize("name", ["model.pt", "model.json"])
def test_the_next_model_is_the_best_where_the_one_before_is_gone(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    validated(first, 1.0)
    (tmp_path / name).unlink()
    second = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    second.load_state_dict(first.state_dict())
    assert "not in" in caplog.text and "any more" in caplog.text
    validated(second, 1.5)
    assert json.loads((tmp_path / "model.json").read_text())["validation"]["voi"] == 1.5


def test_the_three_files_of_a_model_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {})
    validated(best, 2.0)

    def full(*_: Any) -> bytes:
        raise OSError("no space left")

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("custom.model_folder.state_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        validated(best, 1.0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def volume(name: str, size: tuple[float, float, float] = (8.0, 8.0, 8.0)) -> Any:
    spec = SimpleNamespace(pca=None, to_json=lambda: {"window": 64})
    metadata = {"roi": {"offset": [0, 1, 2], "shape": [3, 4, 5]}}
    return SimpleNamespace(id=name, spec=spec, metadata=metadata, voxel_size_nm=size)


@pytest.mark.parametrize(("sigma", "lsds"), [(80.0, [2, 12]), (None, [2, 2])])
def test_a_description_is_plain_json_and_names_channels_and_split(
    sigma: float | None, lsds: list[int]
) -> None:
    offsets = ((1, 0, 0), (0, 9, 0))
    targets = TargetSettings(offsets, sigma)
    described = model_description([volume("cube")], [volume("held")], targets)
    assert json.loads(json.dumps(described)) == described
    assert described["channels"] == {"affinities": [0, 2], "lsds": lsds}
    assert described["affinity_offsets"] == [[1, 0, 0], [0, 9, 0]]
    split = described["split"]
    assert [v["id"] for v in (*split["training"], *split["validation"])] == ["cube", "held"]


def test_a_description_names_every_voxel_size_of_the_training_once() -> None:
    training = [volume("a"), volume("b", (40.0, 8.0, 6.0)), volume("c"), volume("d", (4.0,) * 3)]
    held = [volume("held", (9.0,) * 3)]
    described = model_description(training, held, TargetSettings(((1, 0, 0),), None))
    assert described["voxel_size_nm"] == [8.0, 8.0, 8.0]
    assert described["other_voxel_sizes_nm"] == [[40.0, 8.0, 6.0], [4.0, 4.0, 4.0]]


def test_a_model_without_its_description_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(InputError, match="no trained model"):
        read_description(tmp_path)
    (tmp_path / "model.json").write_text('{"features": {}}')
    with pytest.raises(InputError, match="lacks 'affinity_offsets'"):
        read_description(tmp_path)


# --- what is predicted ---


def test_the_best_model_is_that_of_the_highest_dice(tmp_path: Path) -> None:
    best = BestModel(str(tmp_path), nn.Linear(1, 1, bias=False), {}, key=DICE)
    engine = Engine(lambda engine, batch: None)
    best.attach(engine)
    for epoch, dice in enumerate((0.0, 0.6, 0.5, 0.6), start=1):

        def scored(engine: Engine, epoch: int = epoch, dice: float = dice) -> None:
            engine.state.epoch, engine.state.metrics = epoch, {"dice": dice}

        with engine.add_event_handler(Events.ITERATION_COMPLETED, scored):
            engine.run([0])
        described = json.loads((tmp_path / "model.json").read_text())
        assert described["epoch"] == min(epoch, 2)
    assert described["validation"] == {"dice": 0.6}
    assert described["segmentation"] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_type": "labels"}, "output_type 'affinities', not 'labels'"),
        ({"dimensions": 2}, "dimensions 3, not 2"),
        ({}, None),
    ],
)
def test_training_goes_on_only_to_predict_what_it_began_with(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    described = {"output_type": "affinities", "dimensions": 3, "num_classes": None}
    first = BestModel(str(tmp_path), nn.Linear(1, 1), described)
    second = BestModel(str(tmp_path), nn.Linear(1, 1), described | change)
    if message is None:
        second.load_state_dict(first.state_dict())
        return
    with pytest.raises(ValueError, match=message):
        second.load_state_dict(first.state_dict())


def classed(**ids: int) -> Any:
    found = volume("cube")
    found.metadata["entry"] = {"class_ids": ids}
    return found


def test_a_description_of_classes_names_them_and_no_offsets() -> None:
    targets = TargetSettings((), None, dimensions=2, classes=ClassSettings(4, ignore_label=9))
    cube = classed(mito=1, er=3)
    described = model_description([cube], [cube], targets)
    assert described["predicted_classes"] == {
        "names": ["background", "mito", "class_2", "er"],
        "ignore_label": 9,
        "class_of_labels": "ids",
    }
    assert described["channels"] == {"classes": [0, 4]}
    assert (described["affinity_offsets"], described["lsd_sigma_nm"]) == ([], None)
    predicts = {key: described[key] for key in ("output_type", "dimensions", "num_classes")}
    assert predicts == {"output_type": "labels", "dimensions": 2, "num_classes": 4}
