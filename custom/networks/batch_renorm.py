"""Batch Renormalisation: batch normalisation that trains on what it will be at inference."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchRenorm(nn.Module):
    """Normalise by the batch, then correct towards the running statistics.

    In training, with the batch's mean m and standard deviation s (biased, per channel) and the
    running M and S, ``y = weight * ((x - m) / s * r + d) + bias`` where ``r = s / S`` is clipped to
    ``[1 / rmax, rmax]``, ``d = (m - M) / S`` to ``[-dmax, dmax]``, and neither has a gradient; then
    M and S go ``momentum`` of the way to m and s. Where nothing is clipped, training computes what
    evaluation does, ``(x - M) / S``, so small batches and single crops do no harm.

    The limits are those of batch normalisation (1 and 0) for ``warmup_steps`` training steps, then
    rise in proportion to the steps: rmax reaches its value after 8, dmax after 5 times as many. The
    step is a buffer, so a training that is taken up goes on where it stood.

    Of several processes each normalises by its own crops, and ``custom.processes.SharedStatistics``
    keeps the running statistics, which they correct towards, the mean of all.
    ``SyncBatchNorm.convert_sync_batchnorm`` leaves the layer as it is.

    Args:
        channels: of the input (B, C, ...).
        momentum: share of the batch in the running statistics.
        eps: added to the batch's variance.
        rmax: limit of the correction of the scale, at least 1.
        dmax: limit of the correction of the mean, in standard deviations, at least 0.
        warmup_steps: training steps with batch normalisation at the start; 0 has the full limits
            from the first step on.

    Source:
        Ioffe 2017, NeurIPS; defaults are the paper's (section 4.1), its first 5,000 steps, rmax 3
        after 40,000 and dmax 5 after 25,000 included.
    """

    running_mean: Tensor
    running_std: Tensor
    steps: Tensor

    def __init__(
        self,
        channels: int,
        momentum: float = 0.01,
        eps: float = 1e-5,
        rmax: float = 3.0,
        dmax: float = 5.0,
        warmup_steps: int = 5000,
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.rmax, self.dmax = rmax, dmax
        self.warmup_steps = warmup_steps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_std", torch.ones(channels))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised ``x`` (B, C, ...), in its dtype; statistics are float32 or better."""
        if not self.training:
            variance = self.running_std.square()
            return F.batch_norm(x, self.running_mean, variance, self.weight, self.bias, eps=0.0)
        r, d = self._corrections(x)
        scale, shift = self.weight * r, self.weight * d + self.bias
        return F.batch_norm(x, None, None, scale, shift, training=True, eps=self.eps)

    def limits(self) -> tuple[Tensor, Tensor]:
        """Limits rmax and dmax of the next step."""
        past = torch.full_like(self.steps, 7, dtype=torch.float32)
        if self.warmup_steps:
            past = self.steps / self.warmup_steps - 1
        rmax = 1 + (self.rmax - 1) * (past / 7).clamp(0, 1)
        return rmax, self.dmax * (past / 4).clamp(0, 1)

    @torch.no_grad()
    def _corrections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The step's r and d; counts the step and moves the running statistics."""
        values = x.to(self.running_mean.dtype)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(values, axes, correction=0)
        std = (variance + self.eps).sqrt()
        rmax, dmax = self.limits()
        r = (std / self.running_std).clamp(1 / rmax, rmax)
        d = ((mean - self.running_mean) / self.running_std).clamp(-dmax, dmax)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_std.lerp_(std, self.momentum)
        self.steps += 1
        return r, d
