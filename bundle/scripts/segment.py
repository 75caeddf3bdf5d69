"""Settings of segmentation methods.

From inside ``bundle/``: ``python -m scripts.segment tune --grid '{"threshold": [0.5, 0.7, 0.9]}'``
"""

import json
import logging
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser

from custom.config_check.findings import message, mistakes
from custom.errors import InputError
from custom.json_fields import with_json_words
from custom.model_folder import read_model
from custom.preflight import user_mistake
from custom.segmentation_settings import SETTINGS
from custom.tuning import settings_in
from custom.tuning import tune as tuned
from scripts.check_config import findings_of
from scripts.strict import strict


@strict
def tune(
    grid: Any = None,
    config_file: Any = "configs/inference.json",
    section: str = "validation",
    **overrides: Any,
) -> None:
    """Find the settings of a segmentation method that are best on volumes with labels.

    Inference must have run on that section. The best settings are stored with the model, and a page
    shows all of them; the same command goes on where it was interrupted.

    Args:
        grid: values to try, such as '{"bias": [-0.8, -0.7], "threshold": [0.9, 0.95]}'.
        config_file: the configuration of inference; with overlays a quoted list.
        section: of the datalist.
        overrides: keys of the configuration with new values, as for a run.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = settings_in(with_json_words(grid))
    names = list(config_file) if isinstance(config_file, list | tuple) else [config_file]
    asked = [str(name) for name in names]
    if wrong := mistakes(findings_of(asked, overrides, "inference")):
        raise InputError(message(wrong))
    try:
        winner, before = _tuned(asked, overrides, section, settings)
    except InputError:
        raise
    except Exception as error:  # MONAI wraps a user's mistake in its own
        mistake = user_mistake(error)
        if mistake is None:
            raise
        raise mistake from error
    scores = ", ".join(f"{name} {value:.3f}" for name, value in winner.scores.items())
    print(f"best of {len(settings)}: {json.dumps(winner.settings)}: {scores}")
    instead = "" if before in ({}, winner.settings) else f" instead of {json.dumps(before)}"
    print(f"stored with the model{instead}; all of them: {winner.report}")


def _tuned(names: list[str], overrides: dict[str, Any], section: str, grid: Any) -> Any:
    """As ``custom.tuning.tune``, by a configuration; and the settings that the model had before."""
    parser = ConfigParser()
    parser.read_config(names)
    parser.update({key: value for key, value in overrides.items() if value is not None})
    parser.resolve_macro_and_relative_ids()
    value = parser.get_parsed_content
    if value("channels").num_classes:
        raise InputError("classes have no segmentation settings: output_type is 'labels'.")
    given = value("segmentation_settings")
    for name in sorted({key for settings in grid for key in settings} & set(given)):
        raise InputError(
            f"segmentation_settings has '{name}', which would win over what a scan finds: leave it "
            f"out there."
        )
    places = (value("output_dir"), value("model_dir"))
    per_section = value("dimensions") == 2
    before = read_model(Path(value("model_dir"))).get(SETTINGS, {})
    found = tuned(value("segmenter"), grid, value("datalist"), section, *places, per_section)
    return found, before


if __name__ == "__main__":
    fire.Fire({"tune": tune})
