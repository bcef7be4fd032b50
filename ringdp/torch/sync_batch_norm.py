"""Batch normalisation over the batches of all ranks, on CPU too.

One exchange forward: each rank's count, means and sums of squared deviations per channel, combined in rank order by the
pairwise formula of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
(1979), so that no large squares cancel. One exchange backward: two sums per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ringdp.constants import Sum
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch import device
from ringdp.torch.ops import operations


class SyncBatchNorm(_BatchNorm):
    """As torch's BatchNorm1d, 2d and 3d, with the statistics of all ranks' batches together while training.

    Batches may be of different sizes, empty ones included; every rank of the set calls the module equally often, and
    its input requires grad on all of them or on none. Evaluation exchanges nothing. As with DistributedDataParallel,
    the gradients of weight and bias are this rank's part: their sum over the ranks is that of the joined batch.

    Args:
        num_features: channels, the size of dimension 1.
        eps: added to the variance.
        momentum: weight of the new statistics in the running ones; None: running ones are plain averages.
        affine: with weight and bias, shape (num_features,).
        track_running_stats: with running_mean, running_var (unbiased, of the joined batch), num_batches_tracked.
        process_set: the ranks whose batches are taken together. Copies of the module share it.

    Shape: input (batch, channels) or (batch, channels, …), float32, float64, bfloat16 or float16, of any layout; the
    output has its shape, dtype and layout. 16-bit inputs are computed with in float32.

    Raises (in forward):
        ValueError: fewer than two dimensions, or other channels.
        UsageError: fewer than two values per channel on all ranks together; on every rank.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_set: ProcessSet = global_process_set,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_set = process_set

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise; see the class."""
        self._check_input_dim(input)
        if not self.training or self.process_set.size() == 1:
            return super().forward(input)  # type: ignore[no-any-return]
        return self._together(input)

    def _together(self, input: torch.Tensor) -> torch.Tensor:
        output, mean, variance, count = _Normalise.apply(
            input, self.weight, self.bias, self.eps, self.process_set
        )
        if self.track_running_stats and self.running_mean is not None:
            self._track(mean, variance * (count / (count - 1)))
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / int(self.num_batches_tracked)
        for running, new in (self.running_mean, mean), (self.running_var, variance):
            running.copy_(running.double() * (1 - momentum) + new * momentum)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm needs (batch, channels, …), not the shape {list(input.shape)}")
        if input.shape[1] != self.num_features:
            raise ValueError(f"SyncBatchNorm has {self.num_features} channels, the input {input.shape[1]}")

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        # A process set is a thing of the job: a copy of it would be one that nobody has added.
        memo[id(self.process_set)] = self.process_set
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy

    @classmethod
    def convert_sync_batchnorm(
        cls, module: nn.Module, process_set: ProcessSet = global_process_set
    ) -> nn.Module:
        """`module` with a SyncBatchNorm for every BatchNorm in it, which takes over its parameters and buffers.

        `module` itself is changed, but for one that is a BatchNorm: then a new one is returned. Parameters stay the
        same objects: an optimizer made before goes on.

        Raises:
            UsageError: a lazy BatchNorm that has not seen an input yet.
        """
        return _convert(cls, module, process_set, {})


def convert_sync_batchnorm(module: nn.Module, process_set: ProcessSet = global_process_set) -> nn.Module:
    """`SyncBatchNorm.convert_sync_batchnorm(module, process_set)`."""
    return SyncBatchNorm.convert_sync_batchnorm(module, process_set)


def _convert(
    cls: type[SyncBatchNorm], module: nn.Module, process_set: ProcessSet, done: dict[nn.Module, nn.Module]
) -> nn.Module:
    if module in done:  # a module may be in several places
        return done[module]
    done[module] = new = _converted(cls, module, process_set) if isinstance(module, _BatchNorm) else module
    for name, child in list(module._modules.items()):
        if child is not None:
            new._modules[name] = _convert(cls, child, process_set, done)
    return new


def _converted(cls: type[SyncBatchNorm], old: _BatchNorm, process_set: ProcessSet) -> SyncBatchNorm:
    if is_lazy(old.weight) or is_lazy(old.running_mean):
        raise UsageError(
            "convert_sync_batchnorm: call the model once first, so that lazy modules know their sizes"
        )
    new = cls(old.num_features, old.eps, old.momentum, False, False, process_set)
    new.affine, new.track_running_stats, new.training = old.affine, old.track_running_stats, old.training
    new._parameters.update(old._parameters)
    new._buffers.update(old._buffers)
    return new


def combine(counts: Sequence[float], rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(means, variances, number of values) of several batches together, added in the order of the rows.

    Args:
        counts: of each batch, the number of values per channel.
        rows: float64, (batches, 2C): means, sums of squared deviations from them.
    """
    channels = rows.shape[1] // 2
    total, mean, squares = 0.0, rows.new_zeros(channels), rows.new_zeros(channels)
    for count, row in zip(counts, rows, strict=True):
        apart = row[:channels] - mean
        if count == 0:
            continue
        mean = mean + apart * (count / (total + count))
        squares = squares + row[channels:] + apart * apart * (total * count / (total + count))
        total += count
    return mean, squares / max(total, 1), total


class _Normalise(torch.autograd.Function):
    """(output, mean, biased variance, number of values): the statistics are float64 and carry no gradient."""

    @staticmethod
    def forward(ctx: Any, input: Any, weight: Any, bias: Any, eps: float, process_set: ProcessSet) -> Any:
        wide = _wide(input)
        mean, variance, count = combine(*_of_all_ranks(wide, process_set))
        if count < 2:
            raise UsageError(
                "SyncBatchNorm needs at least two values per channel on all ranks together to train; "
                f"there are {count:.0f}"
            )
        deviation = torch.rsqrt(variance + eps)
        ctx.save_for_backward(input, weight, mean, deviation)
        ctx.count, ctx.process_set = count, process_set
        ctx.bias_dtype = None if bias is None else bias.dtype
        gain = deviation if weight is None else weight.double() * deviation
        shift = torch.zeros_like(mean) if bias is None else bias.double()
        output = _centred(wide, mean).mul_(_along(gain, wide)).add_(_along(shift, wide))
        ctx.mark_non_differentiable(mean, variance)
        return output.to(input.dtype), mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:  # type: ignore[override]
        input, weight, mean, deviation = ctx.saved_tensors
        wide, up = _wide(input), _wide(grad)
        normal = _centred(wide, mean).mul_(_along(deviation, wide))
        over = _dimensions(wide)
        plain, scaled = up.sum(over), (up * normal).sum(over)
        into_input = into_weight = into_bias = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat([plain, scaled]).double()
            operations.allreduce_(sums, op=Sum, process_set=ctx.process_set)
            means = (sums / ctx.count).split(len(plain))
            gain = deviation if weight is None else weight.double() * deviation
            into_input = up - _along(means[0], up) - normal.mul_(_along(means[1], up))
            into_input = into_input.mul_(_along(gain, up)).to(input.dtype)
        if weight is not None and ctx.needs_input_grad[1]:
            into_weight = scaled.to(weight.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            into_bias = plain.to(ctx.bias_dtype)
        return into_input, into_weight, into_bias, None, None


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In the dtype that is computed in."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _dimensions(tensor: torch.Tensor) -> list[int]:
    return [0, *range(2, tensor.dim())]


def _along(channels: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """One number for each channel, to be broadcast over `tensor`."""
    return channels.to(tensor.dtype).view(1, -1, *[1] * (tensor.dim() - 2))


def _centred(tensor: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """`tensor` minus its mean, float64, of which all digits count: what is far from zero beside its deviation would
    lose them with those of a float32 mean."""
    near = mean.to(tensor.dtype)
    centred = tensor - _along(near, tensor)
    return centred if tensor.dtype == mean.dtype else centred.sub_(_along(mean - near, tensor))


def _of_all_ranks(wide: torch.Tensor, process_set: ProcessSet) -> tuple[list[float], torch.Tensor]:
    """What `combine` takes. Nothing waits for a GPU: the counts, which the host wants to know, go beside its memory."""
    row = _row(wide)
    if device.is_on_gpu(wide):
        counts = operations.allgather(torch.tensor([_count(wide)]), process_set=process_set)
        return counts.tolist(), operations.allgather(row, process_set=process_set)[:, 1:]
    rows = operations.allgather(row, process_set=process_set)
    return rows[:, 0].tolist(), rows[:, 1:]


def _count(wide: torch.Tensor) -> int:
    """Values per channel."""
    return wide.numel() // wide.shape[1] if wide.shape[1] else 0


def _row(wide: torch.Tensor) -> torch.Tensor:
    """This rank's count and statistics, shape (1, 1 + 2C), float64."""
    channels, count = wide.shape[1], _count(wide)
    row = wide.new_zeros(1, 1 + 2 * channels, dtype=torch.float64)
    if count:
        over = _dimensions(wide)
        near = wide.mean(over).double()
        variance, rest = torch.var_mean(_centred(wide, near), over, correction=0)
        row[0, 0], row[0, 1 : 1 + channels] = count, near + rest
        row[0, 1 + channels :] = variance.double() * count
    return row
