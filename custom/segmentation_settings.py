"""Segmentation settings that are stored with a model: found at validation, or by a scan."""

from collections.abc import Mapping
from typing import Any, TypeVar

from custom.errors import InputError
from custom.json_fields import with_json_words
from custom.segmentation.method import SegmentationMethod

Method = TypeVar("Method", bound=SegmentationMethod)

METHOD, SETTINGS = "segmentation_method", "segmentation"  # keys of model.json
MUTEX_WATERSHED = "custom.segmentation.segmenter.MutexWatershedSegmenter"  # of models before METHOD


def method_name(method: SegmentationMethod) -> str:
    """Where a method's class is, as a configuration's ``_target_`` says it."""
    return f"{type(method).__module__}.{type(method).__qualname__}"


def refuse_other_method(description: Mapping[str, Any], method: SegmentationMethod) -> None:
    """Refuse a model whose stored settings are those of another method.

    Args:
        description: ``model.json``.
        method: of the configuration.

    Raises:
        InputError: names both.
    """
    stored, wanted = description.get(METHOD) or MUTEX_WATERSHED, method_name(method)
    if description.get(SETTINGS) and stored != wanted:
        raise InputError(
            f"the model's segmentation settings {dict(description[SETTINGS])} are of "
            f"{stored.rpartition('.')[2]}, the config's segmenter is {wanted.rpartition('.')[2]}: "
            f"lay the overlay of the training over this run, find settings with python -m "
            f"scripts.segment tune, or give segmentation_settings."
        )


def chosen_method(
    description: Mapping[str, Any], method: Method, changed: Mapping[str, Any] | None = None
) -> Method:
    """A method with the settings that are stored with a model, and with some of one's own.

    Args:
        description: ``model.json``.
        method: of the configuration.
        changed: settings that win over those of the model; with any, a model whose settings are of
            another method is taken, and these are not.

    Raises:
        InputError: the stored settings are of another method; a setting is unknown.
    """
    changed = with_json_words(dict(changed or {}))
    if changed and (description.get(METHOD) or MUTEX_WATERSHED) != method_name(method):
        return method.with_settings(**changed)
    refuse_other_method(description, method)
    return method.with_settings(**{**description.get(SETTINGS, {}), **changed})
