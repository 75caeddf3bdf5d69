"""Classes of voxels, made from labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from custom.errors import InputError
from custom.json_fields import hint

CLASSES_OF_LABELS = ("ids", "foreground")


@dataclass(frozen=True)
class ClassSettings:
    """What the ids of labels mean as classes.

    Args:
        num_classes: N, background included; classes are 0 to N - 1.
        ignore_label: id of voxels that do not count; None where all do.
        of_labels: "ids": an id is the number of its class; "foreground": every object is class 1.
    """

    num_classes: int
    ignore_label: int | None = None
    of_labels: str = "ids"

    def table(self, ids: Sequence[int] | NDArray[np.integer], where: str) -> NDArray[np.int64]:
        """Class of every id, -1 for the one that does not count.

        Args:
            ids: of labels, (M,).
            where: names the labels in messages.

        Raises:
            InputError: an id is no class.
        """
        found = []
        for id_ in map(int, ids):
            if id_ == self.ignore_label:
                found.append(-1)
            elif self.of_labels == "foreground":
                found.append(int(id_ != 0))
            elif id_ < self.num_classes:
                found.append(id_)
            else:
                raise InputError(
                    f"{where} hold the id {id_}, but with num_classes {self.num_classes} classes "
                    f"are 0 to {self.num_classes - 1}: raise num_classes, name the id as "
                    "ignore_label, or set class_of_labels to 'foreground' for instances"
                )
        return np.array(found, np.int64)


def class_settings(
    num_classes: int, ignore_label: int | None = None, class_of_labels: str = "ids"
) -> ClassSettings:
    """Settings from a config's values, checked.

    Args:
        num_classes: from 2 on; ``channel_layout`` has looked.
        ignore_label: a whole number from 0 on, or None.
        class_of_labels: "ids" or "foreground", which has two classes.

    Raises:
        InputError: a value is of the wrong kind or out of range.
    """
    if ignore_label is not None and (type(ignore_label) is not int or ignore_label < 0):
        raise InputError(
            f"ignore_label must be null or a whole number from 0 on, got {ignore_label!r}"
        )
    if class_of_labels not in CLASSES_OF_LABELS:
        close = hint(str(class_of_labels), CLASSES_OF_LABELS)
        raise InputError(f"class_of_labels {class_of_labels!r} is unknown{close}")
    if class_of_labels == "foreground" and num_classes != 2:
        raise InputError(
            f"class_of_labels 'foreground' has two classes, background and object, but num_classes "
            f"is {num_classes}; set it to 2"
        )
    return ClassSettings(num_classes, ignore_label, class_of_labels)


def classified(
    labels: NDArray[np.integer], mask: NDArray[np.bool_], table: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Classes of consecutive labels, and where they count.

    Args:
        labels: places in the table, (D, H, W).
        mask: True where labels count, (D, H, W).
        table: from ``ClassSettings.table``.

    Returns:
        classes: (D, H, W) int64, 0 where the label does not count.
        mask: (D, H, W).
    """
    classes = table[labels]
    return np.maximum(classes, 0), mask & (classes >= 0)
