from pathlib import Path

from custom.sharing.settings import changed_settings, trained_settings, with_settings

SHIPPED = {
    "cache_dir": "$os.path.join(@bundle_root, 'cache')",
    "device": "$torch.device('cpu')",
    "width": 16,
    "features": {"window": 512, "planes": ["xy"]},
    "network": "$@network_def.to(@device)",
    "train": {"trainer": {"network": "@network", "epochs": "@epochs"}},
}


def test_settings_of_the_training_are_the_defaults_and_places_are_not() -> None:
    trained = {**SHIPPED, "cache_dir": "/home/ann/cache", "device": "cuda:3", "width": 8}
    inference = {"cache_dir": "here", "device": "there", "width": 16, "output_dir": "out"}
    found = with_settings(inference, trained_settings(trained, SHIPPED, {}))
    assert found == {"cache_dir": "here", "device": "there", "width": 8, "output_dir": "out"}


def test_keys_that_a_training_has_no_use_for_are_left_out() -> None:
    shipped = {
        "width": 4,
        "depth": 2,
        "free": 1,
        "train": {"loss": "@width", "old": 3, "weight": "@depth"},
        "run": ["$@train#loss + @train#weight"],
    }
    assert with_settings(shipped, {"width": 8}) == {**shipped, "width": 8}
    trained = {"run": ["$@train#loss"]}
    assert with_settings(shipped, trained) == {
        **{"width": 4, "free": 1, "run": ["$@train#loss"]},
        "train": {"loss": "@width", "old": 3},
    }


def test_a_path_deep_inside_a_setting_is_only_its_last_name() -> None:
    trained = {"features": {"upsampler": "/home/ann/anyup"}, "x": [{"y": "~/z"}]}
    found = trained_settings(trained, SHIPPED, {})
    assert found == {"features": {"upsampler": "anyup"}, "x": [{"y": "z"}]}


def test_what_several_gpus_need_is_not_shared() -> None:
    overlay = {"train#trainer#network": "x", "dist_init": "x", "network": "x", "+train": {}}
    trained = {**SHIPPED, "network": "parallel", "dist_init": {"_target_": "custom.join"}}
    trained["train"] = {"trainer": {"network": "parallel", "epochs": 5}}
    del overlay["+train"]
    found = trained_settings(trained, SHIPPED, overlay)
    assert found["network"] == SHIPPED["network"]
    assert found["train"] == {"trainer": {"network": "@network", "epochs": 5}}
    assert "dist_init" not in found
    assert trained["train"]["trainer"]["network"] == "parallel"  # not changed in place


def test_a_backbone_in_a_folder_is_known_by_the_folders_name(tmp_path: Path) -> None:
    (tmp_path / "dinov2-small").mkdir()
    trained = {**SHIPPED, "backbone": str(tmp_path / "dinov2-small")}
    assert trained_settings(trained, SHIPPED, {})["backbone"] == "dinov2-small"
    hub = {**SHIPPED, "backbone": "facebook/dinov2-small"}
    assert trained_settings(hub, SHIPPED, {})["backbone"] == "facebook/dinov2-small"


def test_references_are_written_as_in_the_shipped_files() -> None:
    trained = {"planes": "@features::planes", "slice": "$[1, 2, 3][::2]", "deep": ["@a::b::0"]}
    found = trained_settings(trained, SHIPPED, {})
    assert found == {"planes": "@features#planes", "slice": "$[1, 2, 3][::2]", "deep": ["@a#b#0"]}


def test_changed_settings_are_those_that_differ_by_nested_key() -> None:
    trained = {**SHIPPED, "width": 8, "features": {"window": 504, "planes": ["xy"]}, "other": 1}
    assert changed_settings(SHIPPED, trained) == {"width": 8, "features#window": 504}
