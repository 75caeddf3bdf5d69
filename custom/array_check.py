"""A look at the arrays of a run before any work: what is there, what fits, what there is room for.

Metadata alone are read, of local and remote volumes, and nothing is written; what a run itself
checks is checked here by the same functions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from custom.array_report import ArrayReport, placed
from custom.comparison import comparable, segmentation_of
from custom.config_values import parser_of
from custom.datalist import entries_in, place_entry
from custom.inference_check import check_inference
from custom.preprocessing import Preprocessor
from custom.running import kind_of
from custom.skeletons import read_skeletons
from custom.training_check import check_training, check_validation


def check_arrays(config: Mapping[str, Any], run: str) -> ArrayReport:
    """Refuse a run whose arrays are missing, do not fit each other, or will not have room.

    Args:
        config: merged; its expressions are evaluated.
        run: id of the run.

    Returns:
        what was found; nothing for a run that is none of the bundle's four.

    Raises:
        InputError: names the first mistake.
    """
    check = CHECKS.get(kind_of(config, run) or "")
    return ArrayReport({}) if check is None else check(parser_of(config))


def _check_preprocessing(parser: ConfigParser) -> ArrayReport:
    preprocessor: Preprocessor = parser.get_parsed_content("preprocessor")
    jobs = [job for job in preprocessor.check() if not job.copy]
    sections = {job.section: [j for j in jobs if j.section == job.section] for job in jobs}
    return ArrayReport({name: placed(j.opened for j in part) for name, part in sections.items()})


def _check_evaluating(parser: ConfigParser) -> ArrayReport:
    if "section" not in parser:  # a model is scored on validation volumes
        return check_validation(parser)
    datalist, section, folder = (
        parser.get_parsed_content(key) for key in ("datalist", "section", "output_dir")
    )
    opened = [place_entry(entry) for entry in comparable(entries_in(datalist, section))]
    for found in opened:
        segmentation_of(found, Path(folder))
        if found.entry.skeletons is not None:
            read_skeletons(found.entry.skeletons, f"entry '{found.entry.id}', skeletons")
    return ArrayReport({section: placed(opened)})


CHECKS: Mapping[str, Callable[[ConfigParser], ArrayReport]] = {
    "preprocessing": _check_preprocessing,
    "training": check_training,
    "inference": check_inference,
    "evaluating": _check_evaluating,
}
