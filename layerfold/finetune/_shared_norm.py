"""BatchNorm over the images of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SharedBatchNorm(TorchFunctionMode):
    """Within the block, every BatchNorm in train mode takes its statistics over all processes.

    torch's SyncBatchNorm knows only GPUs, and it replaces modules, so that subclasses (timm's BatchNorm with an
    activation) and functional calls are left out. Here the one function that all of them end in, ``F.batch_norm``, is
    computed otherwise: gradients and running statistics are those of one process with the whole batch, up to rounding,
    on CPUs (gloo) as on GPUs (NCCL).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    found: Tensor = _SharedBatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return found


class _SharedBatchNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var over all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        dims = [0, *range(2, x.dim())]
        local_var, local_mean = torch.var_mean(_precise(x), dims, correction=0)
        # In float64, where a difference of squares does no harm.
        number, mean64 = x.numel() // x.shape[1], local_mean.double()
        sums = torch.stack([torch.full_like(mean64, number), number * mean64, number * (local_var + mean64**2)])
        dist.all_reduce(sums)
        total = sums[0, 0]
        mean64 = sums[1] / total
        var64 = (sums[2] / total - mean64**2).clamp_min(0)
        mean, var = mean64.to(local_mean.dtype), var64.to(local_var.dtype)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var64 * total / (total - 1)).to(running_var.dtype), momentum)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), total)
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, scale, total = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        dims = [0, *range(2, x.dim())]
        grad_y = _precise(grad)
        centred = _precise(x) - mean.view(shape)
        sum_grad, sum_product = grad_y.sum(dims), (grad_y * centred).sum(dims)
        # Of weight and bias each process has its own share: DDP adds them up as it does all others.
        grad_weight = (sum_product * scale).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = sum_grad.to(weight.dtype) if ctx.needs_input_grad[2] else None
        sums = torch.stack([sum_grad, sum_product])
        dist.all_reduce(sums)
        means = sums / total.to(sums.dtype)
        factor = scale if weight is None else scale * _precise(weight)
        grad_x = (grad_y - means[0].view(shape) - centred * (scale**2 * means[1]).view(shape)) * factor.view(shape)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
