"""What happens around training steps: clipping, scores, history, pictures."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import Evaluator, IterationEvents
from monai.handlers import ValidationHandler
from numpy.typing import NDArray
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from custom.files import write_atomically
from custom.metrics import SCORES, instance_scores
from custom.pictures import (
    contact_sheet,
    grey_image,
    matched_to_truth,
    paint,
    plane_slice,
    png_bytes,
)
from custom.planes import PLANES
from custom.segmentation.segmenter import MutexWatershedSegmenter


class GradientClipping:
    """Scale gradients down to a largest norm, before the optimizer's step.

    Args:
        network: its parameters' gradients are clipped.
        max_norm: largest L2 norm of all gradients together.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Run after every backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class SegmentationScore(Metric):
    """VOI at the best of a grid of segmentation settings, mean over the validation volumes.

    Every volume is segmented with every setting. The best setting has the lowest CREMI score, the
    geometric mean of VOI and adapted Rand error (VOI alone hardly notices one large object torn in
    two). ``compute`` returns the VOI there; the metrics of the engine get, beside it,
    ``voi_split``, ``voi_merge``, ``adapted_rand``, and ``engine.state.segmentation`` is the setting
    itself, which inference uses later.

    Args:
        segmenter: from affinities to segments.
        grid: settings to choose from, each some of the segmenter's arguments, such as
            ``{"bias": -0.7, "threshold": 0.5}``.

    Raises:
        ValueError: the grid is empty.
        InputError: a setting is unknown.
    """

    def __init__(
        self, segmenter: MutexWatershedSegmenter, grid: Sequence[Mapping[str, Any]]
    ) -> None:
        if not grid:
            raise ValueError("grid must name at least one setting")
        self.segmenters = [segmenter.with_settings(**settings) for settings in grid]
        self.grid = [dict(settings) for settings in grid]
        super().__init__(output_transform=_predictions)

    def reset(self) -> None:
        """Forget all volumes."""
        self.rows: list[list[list[float]]] = []

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Segment and score volumes.

        Args:
            output: ``pred`` (K + L, D, H, W) probabilities, ``label`` (1, D, H, W).
        """
        for item in output:
            affinities = as_uint8(item["pred"])
            truth = item["label"][0].cpu().numpy()
            scores = [instance_scores(truth, labels) for labels in self._segment(affinities)]
            self.rows.append([[row[name] for name in SCORES] for row in scores])

    def _segment(self, affinities: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
        """Segments for every setting; fragments are made once where settings share them."""
        last = None
        for segmenter in self.segmenters:
            if last is None or not segmenter.same_fragments(last):
                fragments = segmenter.fragments(affinities)
            last = segmenter
            yield segmenter.join(fragments, affinities)

    def compute(self) -> float:
        """VOI in bits at the best setting."""
        return self.best()[1]["voi"]

    def best(self) -> tuple[int, dict[str, float]]:
        """Index of the setting with the lowest CREMI score, and all mean scores at it."""
        means = np.mean(self.rows, axis=0)
        cremi = means[:, SCORES.index("voi")] * means[:, SCORES.index("adapted_rand")]
        index = int(np.argmin(cremi))
        return index, dict(zip(SCORES, means[index].tolist(), strict=True))

    def completed(self, engine: Engine, name: str) -> None:
        """Put the scores among the engine's metrics."""
        super().completed(engine, name)
        index, scores = self.best()
        state: Any = engine.state
        state.metrics.update(scores)
        state.segmentation = self.grid[index]


def _predictions(output: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return output


def as_uint8(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    """Probabilities as 0 to 255, rounded: what is stored is what is segmented."""
    scaled: NDArray[np.uint8] = (probabilities * 255).round().to(torch.uint8).cpu().numpy()
    return scaled


class TensorBoard:
    """Curves and pictures for TensorBoard; nothing is written before there is something to write.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self._writer: SummaryWriter | None = None

    def add_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """One point on each of several curves."""
        for name, value in values.items():
            self._open().add_scalar(name, value, epoch)
        self._open().flush()

    def add_image(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image (H, W, 3)."""
        self._open().add_image(name, image, epoch, dataformats="HWC")
        self._open().flush()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(self.log_dir)
        return self._writer


class Validation(ValidationHandler):
    """MONAI's handler, which also validates after the last epoch, whatever the interval.

    Args:
        interval: epochs between validations.
        validator: the evaluator.
    """

    def __init__(self, interval: int, validator: Evaluator) -> None:
        super().__init__(interval, validator, epoch_level=True)

    def attach(self, engine: Engine) -> None:
        """Run after every ``interval`` epochs and after the last one."""

        def due(engine: Engine, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class History:
    """One line per epoch: losses and validation scores, as JSON, in TensorBoard and in the log.

    Attach to the trainer after the validation handler, so that an epoch's scores are there.

    Args:
        path: JSON file, a list with one mapping per epoch: ``epoch``, ``train_loss``, the loss's
            components, ``lr``, and after a validation its scores.
        loss: its ``components`` are logged.
        optimizer: its learning rate is logged.
        writer: TensorBoard.
        evaluator: its metrics are logged in epochs with a validation.
    """

    def __init__(
        self,
        path: str,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        writer: TensorBoard,
        evaluator: Engine,
    ) -> None:
        self.path = Path(path)
        self.loss = loss
        self.optimizer = optimizer
        self.writer = writer
        self.evaluator = evaluator
        self.entries: list[dict[str, Any]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        """Add up every step, write every epoch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _add(self, engine: Engine) -> None:
        self._steps += 1
        self._sums["train_loss"] += _loss(engine)
        for name, value in getattr(self.loss, "components", {}).items():
            self._sums[f"loss_{name}"] += value.item()

    def __call__(self, engine: Engine) -> None:
        """Write the epoch."""
        epoch = engine.state.epoch
        entry = {name: total / self._steps for name, total in self._sums.items()}
        entry["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.evaluator.state.epoch == epoch:
            entry |= {name: self.evaluator.state.metrics[name] for name in SCORES}
        self.writer.add_scalars(entry, epoch)
        self._sums.clear()
        self._steps = 0
        self.entries.append({"epoch": epoch, **entry})
        self.write()

    def write(self) -> None:
        """Write all entries."""
        write_atomically(self.path, json.dumps(self.entries, indent=1).encode())

    def state_dict(self) -> dict[str, Any]:
        """Entries so far, for the checkpoint."""
        return {"entries": self.entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Entries of the run that is taken up."""
        self.entries = list(state["entries"])


def _loss(engine: Engine) -> float:
    """Loss of the trainer's last step."""
    output: Any = engine.state.output
    return float(output["loss"].detach())


class SlicePanel:
    """Middle slices of the first validation volume: raw, truth, prediction, segmentation.

    Written after every validation as PNG and to TensorBoard. Attach to the evaluator.

    Args:
        folder: for ``panel_<epoch>.png``.
        writer: TensorBoard.
        score: its best setting segments.
    """

    def __init__(self, folder: str, writer: TensorBoard, score: SegmentationScore) -> None:
        self.folder = Path(folder)
        self.writer = writer
        self.score = score
        self._item: Mapping[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Keep the first volume, draw it when all are scored."""
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self)

    def _forget(self, engine: Engine) -> None:
        self._item = {}

    def _keep(self, engine: Engine) -> None:
        if not self._item:
            state: Any = engine.state
            self._item = {**state.output[0], "voxel_size_nm": state.batch[0]["voxel_size_nm"]}

    def __call__(self, engine: Engine) -> None:
        """Draw the panel."""
        panel = draw_panel(self._item, self.score.segmenters[self.score.best()[0]])
        epoch = engine.state.epoch
        write_atomically(self.folder / f"panel_{epoch:04d}.png", png_bytes(panel))
        self.writer.add_image("validation", panel, epoch)


def draw_panel(item: Mapping[str, Any], segmenter: MutexWatershedSegmenter) -> NDArray[np.uint8]:
    """Contact sheet (rows, columns, 3) of a volume's raw, truth, affinities and segmentation.

    Args:
        item: ``image`` (1, D, H, W) in [-1, 1], ``label`` (1, D, H, W), ``pred`` (K + L, D, H, W),
            ``voxel_size_nm`` (3,).
        segmenter: from affinities to segments.
    """
    affinities = as_uint8(item["pred"])
    truth = item["label"][0].cpu().numpy()
    segments = matched_to_truth(truth, segmenter(affinities))
    volumes = {
        "raw": grey_image(item["image"][0].cpu().numpy(), -1, 1),
        "truth": paint(truth),
        "affinities 1-3": np.moveaxis(affinities[:3], 0, -1),
        "segmentation": paint(segments),
    }
    size = [float(s) for s in item["voxel_size_nm"]]
    columns = {
        name: [plane_slice(volume, plane, size) for plane in PLANES]
        for name, volume in volumes.items()
    }
    return contact_sheet(columns, PLANES)


class TrainingProgress:
    """A progress bar over all steps of training with loss, VOI and time left.

    Attach to the trainer.

    Args:
        evaluator: its last VOI is shown.
    """

    def __init__(self, evaluator: Engine) -> None:
        self.evaluator = evaluator
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Start with training, end with it, however it ends."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._end)

    def _start(self, engine: Engine) -> None:
        if self.bar is None:
            state: Any = engine.state
            total = state.max_epochs * state.epoch_length
            self.bar = tqdm(total=total, initial=state.iteration, unit="step", desc="training")

    def __call__(self, engine: Engine) -> None:
        """Advance."""
        assert self.bar is not None
        self._describe(self.bar, engine)
        self.bar.update()

    def _describe(self, bar: tqdm, engine: Engine) -> None:
        """The figures behind the bar, drawn with its next step or its end."""
        shown = {"epoch": engine.state.epoch, "loss": f"{_loss(engine):.3f}"}
        if "voi" in self.evaluator.state.metrics:
            shown["voi"] = f"{self.evaluator.state.metrics['voi']:.3f}"
        bar.set_postfix(shown, refresh=False)

    def _end(self, engine: Engine, error: BaseException | None = None) -> None:
        if self.bar is not None:
            if error is None and self.bar.n > self.bar.initial:
                # the last validation came after the last step
                self._describe(self.bar, engine)
            self.bar.close()
            self.bar = None
        if error is not None:
            raise error
