import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.losses import BoundaryWeightedAffinityLoss
from custom.networks.fusion import TokenUNet
from custom.networks.unet import UNet
from custom.step_memory import LiveBytes, Step, StepMemory, step_memory
from tests.conftest import ROOT

LAYOUT = ChannelLayout(3, 10)
CROP = (32, 24, 40)


def unet(**changes: Any) -> TokenUNet:
    settings = {"in_channels": 1, "out_channels": LAYOUT.num_outputs}
    inner = UNet(**{**settings, "channels": [4, 8], "strides": [[2, 2, 2]], **changes})
    return TokenUNet(inner, token_channels=0, fused_channels=0)


def step(make: Callable[[], nn.Module] = unet) -> Step:
    network = make()
    loss = BoundaryWeightedAffinityLoss(LAYOUT)
    return Step(network, loss, torch.optim.AdamW(network.parameters()))


def estimate(
    make: Callable[[], nn.Module] = unet,
    crop: tuple[int, ...] = CROP,
    number: int = 1,
    amp: torch.dtype | None = None,
) -> StepMemory:
    batch = {"image": ((number, 1, *crop), torch.float32)}
    found = step_memory(lambda: step(make), batch, LAYOUT, amp)
    assert found is not None
    return found


def test_weights_and_the_state_of_adam_are_counted_to_the_byte() -> None:
    numbers = sum(parameter.numel() for parameter in unet().parameters())
    steps = 4 * len(list(unet().parameters()))  # AdamW counts them for every parameter
    found = estimate()
    assert found.weights == 4 * numbers
    assert found.optimizer == 2 * 4 * numbers + steps


def test_the_peak_grows_with_the_crop_and_the_batch() -> None:
    one = estimate().peak
    assert 1.9 * one < estimate(number=2).peak < 2.1 * one
    assert 1.9 * one < estimate(crop=(64, 24, 40)).peak < 2.1 * one


def test_checkpointing_and_half_precision_take_less() -> None:
    def plain() -> TokenUNet:
        return unet(channels=[16, 32])

    whole = estimate(plain).peak
    assert estimate(lambda: unet(channels=[16, 32], checkpointing=True)).peak < 0.9 * whole
    assert estimate(plain, amp=torch.bfloat16).peak < 0.9 * whole


def test_nothing_is_computed_and_no_chance_is_used() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = estimate(lambda: unet(channels=[64, 128]), crop=(256, 256, 256), number=8)
    assert found.peak > 2**36
    assert torch.equal(torch.get_rng_state(), before)


def test_bytes_are_those_of_the_tensors_that_are_alive() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(10, dtype=torch.float64)
        view = kept[2:]
        dropped = kept + 1
        del dropped
        last = view + 1
    assert live.now == 80 + 64
    assert live.peak == 160
    assert last is not None


class Asking(nn.Module):
    """A network that looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, LAYOUT.num_outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image / float(image.max()))


def test_a_network_that_asks_for_values_is_not_judged() -> None:
    batch = {"image": ((1, 1, *CROP), torch.float32)}
    assert step_memory(lambda: step(Asking), batch, LAYOUT) is None
    assert step_memory(lambda: None, batch, LAYOUT) is None


@pytest.mark.parametrize(
    ("make", "crop", "words"),
    [
        (lambda: unet(out_channels=7), CROP, ["[7, 32, 24, 40]", "13 channels", "out_channels"]),
        (lambda: unet(in_channels=3), (31, 24, 40), ["[31, 24, 40] with 1 channels", "3"]),
    ],
)
def test_a_network_that_does_not_fit_is_one_sentence(
    make: Callable[[], nn.Module], crop: tuple[int, ...], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        estimate(make, crop)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


MEASURE = """
import sys, torch
from pathlib import Path
from tests.test_step_memory import LAYOUT, measured_networks, step
make, crop = measured_networks()[sys.argv[1]]
from custom.arenas import share_arenas
share_arenas()
def peak():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) * 1024
def take(made, shape):
    image, target = torch.zeros(1, 1, *shape), torch.rand(1, LAYOUT.num_targets, *shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[2] == "amp"):
        logits = made.network.train()(image).float()
    made.loss(logits, target).backward()
    made.optimizer.step()
take(step(make), (16, 16, 16))
Path("/proc/self/clear_refs").write_text("5")  # what it has now is the peak from here on
before = peak()
take(step(make), crop)
print(peak() - before)
"""


def measured_networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]:
    """Networks whose estimates are compared with what a process takes."""
    deep = {"channels": [12, 24, 48], "strides": [[2, 2, 2], [2, 2, 2]]}
    return {
        "narrow": (unet, (96, 96, 96)),
        "deep": (lambda: unet(**deep), (80, 64, 96)),
        "checkpointed": (lambda: unet(**deep, checkpointing=True), (80, 64, 96)),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(
    ("name", "amp"), [("narrow", "no"), ("deep", "amp"), ("checkpointed", "no")]
)
def test_the_estimate_is_near_what_a_process_takes(name: str, amp: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, name, amp],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    make, crop = measured_networks()[name]
    estimated = estimate(make, crop, amp=torch.bfloat16 if amp == "amp" else None).peak
    assert 0.5 < int(done.stdout) / estimated < 3  # of 1 are the tensors, the rest is the machine's
