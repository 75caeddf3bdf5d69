import torch

from custom.features.quantisation import channel_scales, largest, quantise, restore


def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1e-3, 1.0, 300.0, 0.0]).view(4, 1, 1)
    return (torch.randn((4, 50, 7), generator=generator) * spread).half()


def test_the_largest_magnitude_of_a_channel_becomes_127() -> None:
    scales = channel_scales(largest(values()))
    steps = quantise(values(), scales)
    assert steps.dtype == torch.int8
    assert steps.int().abs().flatten(1).amax(1).tolist() == [127, 127, 127, 0]


def test_restoring_is_within_half_a_step_and_keeps_zero_and_sign() -> None:
    original = values().float()
    scales = channel_scales(largest(original))
    found = restore(quantise(original, scales), scales)
    assert found.dtype == torch.float16
    allowed = scales.view(-1, 1, 1) / 2 + original.abs() * 2**-10 + 1e-7
    assert ((found.float() - original).abs() <= allowed).all()
    assert torch.equal(found[3], torch.zeros(50, 7).half())
    assert torch.equal(quantise(-original, scales), -quantise(original, scales))


def test_quantising_what_was_restored_changes_nothing() -> None:
    scales = channel_scales(largest(values())[:3])
    steps = quantise(values()[:3], scales)
    assert torch.equal(quantise(restore(steps, scales), scales), steps)
