"""A trained model is scored on volumes with labels, the validation's overlay laid over training."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from tests.bundle import tiny
from tests.bundle.tiny import BUNDLE, CONFIGS


def overlaid(run: str, folder: Path, *overlays: str, **changes: Any) -> None:
    """A run of the training's configuration with overlays of the same folder."""
    settings = tiny.settings("training", folder)
    del settings["segmentation_grid"]  # given on the command line, it would win over the overlay's
    monai.bundle.run(
        run_id=run,
        config_file=[str(CONFIGS / f"{name}.json") for name in ("train", *overlays)],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        **{**settings, **changes},
    )


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("run", ["evaluating", "run"])
def test_the_model_scores_what_its_validation_found(project: Path, run: str) -> None:
    described = read(project / "model" / "model.json")
    before = tiny.files(project)
    overlaid(run, project, "validate")
    (written,) = {name for name in tiny.files(project) - before if "/runs/" not in name}
    assert written == "eval/model_scores.json"
    assert read(project / "eval" / "model_scores.json") == {
        "section": "validation",
        "epoch": described["epoch"],
        "segmentation": described["segmentation"],
        "scores": pytest.approx(described["validation"]),
        "volume_scores": {
            "synthetic-validation": pytest.approx(
                described["volume_scores"]["synthetic-validation"]
            )
        },
    }
    assert read(project / "model" / "model.json") == described


def test_volumes_that_validation_never_saw_are_segmented_as_it_chose(project: Path) -> None:
    path = project / "model" / "model.json"
    described = read(path)
    stored = {"bias": -0.45, "threshold": 0.6}  # no setting of the grid
    path.write_text(json.dumps({**described, "segmentation": stored}))
    overlaid(
        "evaluating", project, "validate", source="raw", **{"validate#volumes#section": "test"}
    )
    found = read(project / "eval" / "model_scores.json")
    assert (found["section"], found["segmentation"]) == ("test", stored)
    assert list(found["volume_scores"]) == ["synthetic"]


def test_without_a_model_there_is_nothing_to_score(project: Path) -> None:
    (project / "model" / "model.json").unlink()
    action = partial(overlaid, "evaluating", project, "validate")
    assert "holds no trained model" in tiny.mistake(action)


def test_the_evaluating_run_scores_segmentations_over_the_training_too(project: Path) -> None:
    alone = read(project / "eval" / "scores.json")["entries"]
    (project / "eval" / "scores.json").unlink()
    overlaid("evaluating", project, "evaluate", output_dir=str(project / "output"))
    assert read(project / "eval" / "scores.json")["entries"] == alone
