"""Inference of volumes of any size, block by block, as a chain of tasks for each."""

import logging

from custom.blockwise.settings import BlockSettings
from custom.errors import InputError
from custom.inferers import TokenSlidingWindowInferer
from custom.output import ModelLoader, SegmentationWriter, dataset_ids, refuse_places
from custom.preflight import Preflight
from custom.running import running_config

logger = logging.getLogger(__name__)


class BlockwiseInference:
    """Predict and segment every volume of a dataset, block by block.

    Of every volume, ``<output_dir>/<id>.zarr`` holds what ``SegmentationWriter`` describes, and
    ``<id>.blocks`` beside it what is known of its blocks, so that the same run goes on where it was
    stopped.

    Args:
        loader: checks the model and gives the network its weights.
        writer: what is written, and where.
        inferer: how the network is run on windows.
        settings: how blocks are run.
        preflight: writes the record of the run once nothing refuses it any more.
    """

    def __init__(
        self,
        loader: ModelLoader,
        writer: SegmentationWriter,
        inferer: TokenSlidingWindowInferer,
        settings: BlockSettings,
        preflight: Preflight,
    ) -> None:
        self.loader = loader
        self.writer = writer
        self.inferer = inferer
        self.settings = settings
        self.preflight = preflight

    def run(self) -> None:
        """All volumes, one after the other, also after one of which blocks failed.

        Raises:
            InputError: the model does not fit, something else is at the place of a result, raw of
                a volume is constant, the disk is too small, or blocks failed.
        """
        from custom.blockwise.records import FailedBlocksError  # daisy is slow to import
        from custom.blockwise.volume_run import volume_runs

        refuse_places(self.writer.output_dir, dataset_ids(self.writer.dataset))
        description = self.loader.load()
        volumes = list(volume_runs(self, description))
        self.preflight()
        failed: dict[str, InputError] = {}
        for volume in volumes:
            try:
                volume.run(running_config())
            except FailedBlocksError as error:
                logger.error("%s: %s", volume.id, error)
                failed[volume.id] = error
        if failed:
            raise _end(failed, len(volumes))


def _end(failed: dict[str, InputError], number: int) -> InputError:
    """One sentence for all volumes of which blocks failed."""
    first, error = next(iter(failed.items()))
    if number == 1:
        return error
    others = "the others are done" if len(failed) < number else "none is done"
    return InputError(
        f"{len(failed)} of {number} volumes failed ({', '.join(failed)}), {others}; of '{first}': "
        f"{error}"
    )
