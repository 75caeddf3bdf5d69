"""Order of the channels in predictions and target tensors."""

from dataclasses import dataclass

LSD_CHANNELS_3D = 10


@dataclass(frozen=True)
class ChannelLayout:
    """Where affinities, LSDs and their masks lie along the channel axis.

    Predictions hold ``affinities`` then ``lsds``. Target tensors hold, in addition, one validity
    channel per affinity, one mask channel for the LSDs and one weight channel::

        prediction   | affinities K | lsds L |
        target       | affinities K | lsds L | valid K | lsd_mask 1 | weight 1 |

    Args:
        num_affinities: K, the number of affinity offsets, at least 1.
        num_lsds: L, 10 in 3D, or 0 for affinities alone.

    Raises:
        ValueError: a count is out of range.
    """

    num_affinities: int
    num_lsds: int = LSD_CHANNELS_3D

    def __post_init__(self) -> None:
        if self.num_affinities < 1:
            raise ValueError(f"num_affinities must be at least 1, got {self.num_affinities}")
        if self.num_lsds not in (0, LSD_CHANNELS_3D):
            raise ValueError(f"num_lsds must be 0 or {LSD_CHANNELS_3D}, got {self.num_lsds}")

    @property
    def affinities(self) -> slice:
        """Affinities, in predictions and targets."""
        return slice(0, self.num_affinities)

    @property
    def lsds(self) -> slice:
        """Local shape descriptors, in predictions and targets."""
        return slice(self.num_affinities, self.num_outputs)

    @property
    def valid(self) -> slice:
        """Validity of every affinity (0 or 1), in targets."""
        return slice(self.num_outputs, self.num_outputs + self.num_affinities)

    @property
    def lsd_mask(self) -> slice:
        """Where LSDs count (0 or 1), in targets."""
        return slice(self.num_targets - 2, self.num_targets - 1)

    @property
    def weight(self) -> slice:
        """Loss weight of a voxel, in targets."""
        return slice(self.num_targets - 1, self.num_targets)

    @property
    def num_outputs(self) -> int:
        """Channels of a prediction."""
        return self.num_affinities + self.num_lsds

    @property
    def num_targets(self) -> int:
        """Channels of a target tensor."""
        return self.num_outputs + self.num_affinities + 2
