import json
from pathlib import Path
from typing import Any

import pytest

from custom.errors import InputError
from custom.features.image_statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SAT493M_MEAN,
    SAT493M_STD,
    image_statistics,
)

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
SAT493M = (SAT493M_MEAN, SAT493M_STD)
HUGGING_FACE = "preprocessor_config.json"


def written(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("facebook/dinov3-vits16-pretrain-lvd1689m", IMAGENET),
        ("facebook/dinov3-vitl16-pretrain-sat493m", SAT493M),
        ("timm/vit_large_patch16_dinov3.SAT493M", SAT493M),
        ("/models/mine", IMAGENET),
    ],
)
def test_without_statistics_the_name_decides(
    name: str,
    expected: object,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert image_statistics(written(tmp_path, config={"model_type": "x"}), name) == expected
    assert ("its name says sat493m" in caplog.text) == (expected == SAT493M)


@pytest.mark.parametrize(
    "files",
    [
        {"preprocessor_config": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}},
        {"config": {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}},
    ],
    ids=["Hugging Face", "timm"],
)
def test_stated_statistics_win_over_the_name(
    files: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stated = image_statistics(written(tmp_path, **files), "owner/model-sat493m")
    assert stated == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not caplog.records


def test_half_of_the_statistics_is_completed(tmp_path: Path) -> None:
    folder = written(tmp_path, preprocessor_config={"image_mean": [0.1, 0.2, 0.3]})
    assert image_statistics(folder, "mine") == ((0.1, 0.2, 0.3), IMAGENET_STD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image_std": [0.1, 0, 0.2]}', "image_std must be three positive numbers"),
        ('{"image_mean": [0.1, 0.2]}', "must be three numbers each"),
        ('{"image_mean": "grey"}', "must be three numbers each"),
        ('{"image_mean": 0.5}', "must be three numbers each"),
        ("{", "is not valid JSON"),
    ],
)
def test_statistics_that_are_none_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / HUGGING_FACE).write_text(content)
    with pytest.raises(InputError, match=f"{HUGGING_FACE}.*{message}"):
        image_statistics(tmp_path, "mine")
