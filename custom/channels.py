"""Order of the channels in predictions and target tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

from custom.errors import InputError
from custom.json_fields import hint, not_negative

LSD_CHANNELS = {2: 6, 3: 10}
"""Channels of local shape descriptors by number of dimensions."""

LSD_CHANNELS_3D = LSD_CHANNELS[3]

OUTPUT_TYPES = ("affinities_lsds", "affinities", "labels")


@dataclass(frozen=True)
class ChannelLayout:
    """Where affinities, LSDs and their masks, or classes, lie along the channel axis.

    Predictions hold ``affinities`` then ``lsds``, or ``classes``. Target tensors hold, in addition,
    one validity channel per affinity, one mask channel for the LSDs and one weight channel; those
    of classes the class id, its validity and a weight::

        prediction   | affinities K | lsds L |
        target       | affinities K | lsds L | valid K | lsd_mask 1 | weight 1 |

        prediction   | classes N |
        target       | class id 1 | valid 1 | weight 1 |

    Args:
        num_affinities: K, the number of affinity offsets; 0 with classes.
        num_lsds: L, 10 in 3D, 6 in 2D, or 0 for affinities alone and with classes.
        num_classes: N, the background included, at least 2; 0 for affinities.

    Raises:
        ValueError: a count is out of range, or there are both affinities and classes.
    """

    num_affinities: int
    num_lsds: int = LSD_CHANNELS_3D
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.num_classes:
            if self.num_classes < 2 or self.num_affinities or self.num_lsds:
                raise ValueError(
                    "classes must be at least 2 (background included), without affinities and "
                    f"LSDs, got {self}"
                )
            return
        if self.num_affinities < 1:
            raise ValueError(f"num_affinities must be at least 1, got {self.num_affinities}")
        if self.num_lsds not in (0, *LSD_CHANNELS.values()):
            raise ValueError(f"num_lsds must be 0, 6 (2D) or 10 (3D), got {self.num_lsds}")

    @property
    def affinities(self) -> slice:
        """Affinities, in predictions and targets."""
        return slice(0, self.num_affinities)

    @property
    def lsds(self) -> slice:
        """Local shape descriptors, in predictions and targets."""
        return slice(self.num_affinities, self.num_affinities + self.num_lsds)

    @property
    def classes(self) -> slice:
        """Logits or probabilities of the classes, in predictions."""
        return slice(0, self.num_classes)

    @property
    def class_id(self) -> slice:
        """Id of the true class, in targets of classes."""
        return slice(0, 1 if self.num_classes else 0)

    @property
    def valid(self) -> slice:
        """Validity of every affinity, or of the class id (0 or 1), in targets."""
        start = 1 if self.num_classes else self.num_outputs
        return slice(start, start + (self.num_affinities or 1))

    @property
    def lsd_mask(self) -> slice:
        """Where LSDs count (0 or 1), in targets of affinities."""
        return slice(self.valid.stop, self.num_targets - 1)

    @property
    def weight(self) -> slice:
        """Loss weight of a voxel, in targets."""
        return slice(self.num_targets - 1, self.num_targets)

    @property
    def output_type(self) -> str:
        """The one of ``OUTPUT_TYPES`` that has such channels."""
        if self.num_classes:
            return "labels"
        return "affinities_lsds" if self.num_lsds else "affinities"

    @property
    def num_outputs(self) -> int:
        """Channels of a prediction."""
        return self.num_affinities + self.num_lsds + self.num_classes

    @property
    def num_targets(self) -> int:
        """Channels of a target tensor."""
        if self.num_classes:
            return 3
        return self.num_affinities + self.num_lsds + self.num_affinities + 2


def channel_layout(
    output_type: str,
    affinity_offsets: Sequence[Sequence[int]],
    lsd_sigma_nm: float | None,
    num_classes: int = 2,
    dimensions: int = 3,
) -> ChannelLayout:
    """Layout of what a network is to predict.

    Args:
        output_type: "affinities_lsds", "affinities", or "labels" for classes.
        affinity_offsets: K offsets; not looked at for labels.
        lsd_sigma_nm: needed for affinities_lsds.
        num_classes: N, background included, for labels.
        dimensions: 3, or 2 for networks that see one section at a time.

    Raises:
        InputError: a value is unknown or out of range, or affinities_lsds comes without sigma.
    """
    if output_type not in OUTPUT_TYPES:
        raise InputError(
            f"output_type {output_type!r} is unknown{hint(str(output_type), OUTPUT_TYPES)}"
        )
    if type(dimensions) is not int or dimensions not in LSD_CHANNELS:
        raise InputError(f"dimensions must be 2 or 3, got {dimensions!r}")
    if output_type == "labels":
        if type(num_classes) is not int or num_classes < 2:
            raise InputError(
                "num_classes must be a whole number from 2 on (background included), got "
                f"{num_classes!r}"
            )
        return ChannelLayout(0, 0, num_classes)
    if not affinity_offsets:
        raise InputError("affinity_offsets must name at least one offset [z, y, x]")
    if output_type == "affinities":
        return ChannelLayout(len(affinity_offsets), 0)
    if lsd_sigma_nm is None or not_negative(lsd_sigma_nm, "lsd_sigma_nm") == 0:
        raise InputError(
            f"output_type 'affinities_lsds' needs lsd_sigma_nm, a number above 0, got "
            f"{lsd_sigma_nm!r}; give it, or set output_type to 'affinities'"
        )
    return ChannelLayout(len(affinity_offsets), LSD_CHANNELS[dimensions])
