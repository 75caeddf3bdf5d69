"""A trained network for other programs: TorchScript and ONNX, of one window."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import save_net_with_metadata
from monai.networks.utils import convert_to_torchscript
from torch import Tensor, nn

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.features.spec import FeatureSpec
from custom.files import replacing
from custom.inferers import TokenSlidingWindowInferer, as_probabilities
from custom.model_files import load_weights, read_description
from custom.pipeline import training_parser

TOLERANCE = {"torchscript": 1e-5, "onnx": 1e-4}  # of probabilities
Run = Callable[[Sequence[Tensor]], Tensor]


class WindowNetwork(nn.Module):
    """A network on windows, with its inputs in an order instead of by name, and an activation.

    Args:
        network: takes ``names``.
        names: of its inputs, in their order; the first is ``image``.
        layout: of its channels; None for affinities, with or without LSDs.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], layout: ChannelLayout | None
    ) -> None:
        super().__init__()
        self.network = network
        self.names = list(names)
        self.layout = layout

    def forward(self, *inputs: Tensor) -> Tensor:
        """Probabilities (B, C, D, H, W) float32 of ``names``."""
        named = dict(zip(self.names, inputs, strict=True))
        return as_probabilities(self.network(**named).float(), self.layout)


@dataclass(frozen=True)
class ExportedModel:
    """What an export is made of, and what it is compared with.

    Args:
        network: in evaluation mode, on the CPU.
        inputs: a random window by the names of the network's inputs, in their order; shapes are
            those of every window of inference: image (1, 1, D, H, W) in [-1, 1], tokens
            (1, C, d, h, w), placements (1, 2, 3), see ``TokenUNet``.
        description: the model's ``model.json``.
    """

    network: WindowNetwork
    inputs: Mapping[str, Tensor]
    description: Mapping[str, Any]

    def output(self) -> Tensor:
        """What the network itself gives for ``inputs``."""
        with torch.no_grad():
            output: Tensor = self.network(*self.inputs.values())
        return output


def exported_model(model_dir: str | Path, seed: int = 0) -> ExportedModel:
    """A trained model, ready to be exported, with a random window.

    Evaluates the configuration that is stored in ``model.json``: it is code, like that of a bundle.

    Args:
        model_dir: folder with ``model.pt`` and ``model.json``.
        seed: of the window.

    Raises:
        InputError: there is no model, or it was trained without a configuration.
    """
    description = read_description(model_dir)
    parser = training_parser(model_dir, description, "cpu", 0.0)
    network = parser.get_parsed_content("network_def").eval()
    load_weights(model_dir, network)
    inferer = parser.get_parsed_content("validate#inferer")
    spec = None
    if parser.get_parsed_content("token_channels"):
        spec = FeatureSpec.from_json(description["features"])
    inputs = random_window(inferer, spec, seed)
    window_network = WindowNetwork(network, list(inputs), inferer.layout).eval()
    return ExportedModel(window_network, inputs, description)


def random_window(
    inferer: TokenSlidingWindowInferer, spec: FeatureSpec | None, seed: int
) -> dict[str, Tensor]:
    """What an inferer gives to the network for a random volume of one window.

    Args:
        inferer: with the size of a window, and its context.
        spec: of the features; None for a network without.
        seed: of all values.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = inferer.roi_size
    image = torch.rand((1, 1, *shape), generator=generator) * 2 - 1
    features = {} if spec is None else _random_features(spec, shape, generator)
    seen: dict[str, Tensor] = {}

    def watched(window: Tensor, **others: Tensor) -> Tensor:
        seen.update({"image": window, **others})
        return window

    plain = TokenSlidingWindowInferer(shape, context_factor=inferer.context_factor)
    plain(image, watched, **features)
    return {name: value.float().clone() for name, value in seen.items()}


def _random_features(
    spec: FeatureSpec, shape: Sequence[int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Features of a volume by the network's argument names."""
    if spec.layout == "dense":
        return {"features": torch.randn((1, spec.channels, *shape), generator=generator)}
    features = {}
    for plane in spec.planes:
        steps = spec.token_steps(plane)
        count = [ceil(n / step) for n, step in zip(shape, steps, strict=True)]
        values = torch.randn((1, spec.channels, *count), generator=generator)
        features[f"tokens_{plane}"] = values
        features[f"placement_{plane}"] = torch.tensor([[[0.0] * 3, list(steps)]])
    return features


def export_torchscript(model: ExportedModel, path: Path) -> float:
    """Write the traced network, with ``model.json`` as its metadata, as MONAI's bundles have it.

    ``monai.data.load_net_with_metadata`` reads it; it needs none of this project's code.

    Args:
        model: to write.
        path: of the file, which is replaced.

    Returns:
        Largest difference of a probability to the network itself, on another window.

    Raises:
        InputError: it is larger than ``TOLERANCE``.
    """
    traced = convert_to_torchscript(
        model.network, inputs=list(model.inputs.values()), use_trace=True
    )
    about = json.loads(json.dumps(dict(model.description), default=str))
    with replacing(path) as part:
        named = part.with_suffix(".ts")  # MONAI appends it otherwise
        save_net_with_metadata(traced, str(named), meta_values=about, append_timestamp=False)
        named.replace(part)
        loaded = torch.jit.load(str(part))  # type: ignore[no-untyped-call]  # torch does not type it
        return _checked("torchscript", model, lambda inputs: loaded(*inputs))


def export_onnx(model: ExportedModel, path: Path) -> float:
    """Write the network as ONNX, its inputs by their names, its output as ``probabilities``.

    Arguments, result and errors as of ``export_torchscript``.
    """
    import onnxruntime  # of the extra "export"

    with replacing(path) as part:
        torch.onnx.export(
            model.network,
            tuple(model.inputs.values()),
            str(part),
            input_names=list(model.inputs),
            output_names=["probabilities"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        wanted = {entry.name for entry in session.get_inputs()}

        def run(inputs: Sequence[Tensor]) -> Tensor:
            given = zip(model.inputs, inputs, strict=True)
            fed = {name: value.numpy() for name, value in given if name in wanted}
            return torch.from_numpy(np.asarray(session.run(None, fed)[0]))

        return _checked("onnx", model, run)


def _checked(form: str, model: ExportedModel, run: Run) -> float:
    """Largest difference on a window that the export has not seen."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for name, value in model.inputs.items():
        noise = torch.rand(value.shape, generator=generator) * 2 - 1
        inputs.append(value if "placement" in name else noise)
    with torch.no_grad():
        difference = float((run(inputs) - model.network(*inputs)).abs().max())
    if not difference <= TOLERANCE[form]:
        raise InputError(
            f"the {form} export differs from the network by {difference:.1e} (allowed is "
            f"{TOLERANCE[form]:.0e}) and was not kept: this network cannot be exported so."
        )
    return difference
