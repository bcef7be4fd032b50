"""PowerSGD: gradients of rank r (Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization", NeurIPS 2019, arXiv:1905.13727; Algorithm 1 compresses, Algorithm 2 feeds the error back).

For each gradient as a matrix M of n × m, with the error of the steps before added, and Q of m × r from the step before:

    P = average over ranks of M Q       orthogonalise P
    Q = average over ranks of Mᵀ P      the gradient: P Qᵀ     the error to keep: M - P Qᵀ

(n + m) r elements travel instead of n m. Gradients for which this is not less by `min_compression_rate`, vectors above
all, travel as they are, beside the P's in one all-reduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringdp.errors import UsageError
from ringdp.ops import Handle
from ringdp.torch.comm_hook import GradBucket, Waits
from ringdp.torch.comm_hooks.memory import Memory
from ringdp.torch.finite import is_finite
from ringdp.torch.ops import operations


@dataclass
class _Kept:
    """For each matrix of a bucket."""

    errors: list[torch.Tensor]
    qs: list[torch.Tensor]


class PowerSGDState:
    """State of `powersgd_hook`. Can be pickled; errors and Q's start anew when the plan changes.

    Args, the same on all ranks:
        matrix_approximation_rank: r; 1 to 4 are usual.
        start_powerSGD_iter: so many windows are averaged as they are first, while gradients are large and change fast.
        min_compression_rate: matrices with n m < rate · (n + m) r travel as they are.
        use_error_feedback, warm_start: False drops the error; draws new Q's for each step.
        random_seed: of the first Q's.
    """

    def __init__(
        self,
        matrix_approximation_rank: int = 1,
        start_powerSGD_iter: int = 10,
        min_compression_rate: float = 2,
        use_error_feedback: bool = True,
        warm_start: bool = True,
        random_seed: int = 0,
    ) -> None:
        if matrix_approximation_rank < 1:
            raise UsageError(
                f"PowerSGDState: matrix_approximation_rank must be 1 or more, not {matrix_approximation_rank}"
            )
        self.rank = matrix_approximation_rank
        self.plain_windows = start_powerSGD_iter
        self.min_compression_rate = min_compression_rate
        self.use_error_feedback = use_error_feedback
        self.warm_start = warm_start
        self.random_seed = random_seed
        self.windows = 0  # done, or begun but for their last bucket
        self.memory: Memory[_Kept] = Memory()

    def compresses(self, gradient: torch.Tensor) -> bool:
        """It travels as two factors."""
        if gradient.dim() < 2 or not gradient.numel():
            return False
        n, m = _sides(gradient)
        return n * m >= self.min_compression_rate * (n + m) * self.rank

    def draw(self, bucket: GradBucket, number: int, q: torch.Tensor) -> None:
        """Fill what is zero of a Q: all of a new one, and columns that a gradient of zeros has left."""
        dead = (q == 0).all(dim=0)
        if dead.any():
            generator = torch.Generator().manual_seed(self.random_seed)
            for n in (self.windows, bucket.index(), number):
                generator.manual_seed((generator.initial_seed() * 1_000_003 + n) % 2**63)
            q[:, dead] = torch.randn(q.shape, generator=generator, dtype=q.dtype)[:, dead]


def powersgd_hook(state: PowerSGDState, bucket: GradBucket) -> Waits:
    """Average the bucket by PowerSGD. float64 buckets are computed with in float64, others in float32.

    All ranks compute P Qᵀ from the same numbers: they get the same bits where they have the same kind of processor and
    number of threads.
    """
    if not is_finite(bucket.buffer()):
        bucket.report_not_finite()  # the step is lost: nothing of this rank goes into the others' errors
        bucket.buffer().zero_()
    plain = state.windows < state.plain_windows
    exchange = (
        operations.allreduce_async_(bucket.buffer(), name=bucket.name(), process_set=bucket.process_set())
        if plain
        else _Exchange(state, bucket)
    )
    state.windows += bucket.is_last()
    return exchange


powersgd_hook.tests_finite = True  # type: ignore[attr-defined]


class _Exchange:
    """One bucket: the P's and what is not compressed leave when it is made, the Q's in `wait()`."""

    def __init__(self, state: PowerSGDState, bucket: GradBucket) -> None:
        self._state, self._bucket = state, bucket
        dtype = torch.float64 if bucket.buffer().dtype is torch.float64 else torch.float32
        gradients = bucket.gradients()
        self._whole = [g for g in gradients if not state.compresses(g)]
        self._low = [g for g in gradients if state.compresses(g)]
        self._matrices = [g.reshape(_sides(g)).to(dtype, copy=True) for g in self._low]
        kept = state.memory.of(bucket)
        if kept is not None and state.use_error_feedback:
            for matrix, error in zip(self._matrices, kept.errors, strict=True):
                matrix += error
        if kept is not None and state.warm_start:
            self._qs = [q.clone() for q in kept.qs]
        else:
            self._qs = [matrix.new_zeros(matrix.shape[1], state.rank) for matrix in self._matrices]
        for number, q in enumerate(self._qs):
            state.draw(bucket, number, q)
        ps = [matrix @ q for matrix, q in zip(self._matrices, self._qs, strict=True)]
        self._first = self._start([*self._whole, *ps], "p", dtype)

    def _start(self, tensors: list[torch.Tensor], what: str, dtype: torch.dtype) -> Handle[torch.Tensor]:
        flat = torch.cat([t.reshape(-1).to(dtype) for t in tensors])
        bucket = self._bucket
        return operations.allreduce_async_(
            flat, name=f"{bucket.name()}.{what}", process_set=bucket.process_set()
        )

    def wait(self) -> torch.Tensor:
        """The averages are in the bucket."""
        flat = self._first.wait()
        ps = [matrix.new_empty(matrix.shape[0], self._state.rank) for matrix in self._matrices]
        _cut(flat, [*self._whole, *ps])
        if self._matrices and not (is_finite(flat) and self._second(ps)):
            # An overflow in the products, the same on all ranks: they skip the step, and start anew.
            self._state.memory.keep(self._bucket, self._kept_anew())
            for gradient in self._low:
                gradient.fill_(torch.inf)
        return self._bucket.buffer()

    def _second(self, ps: list[torch.Tensor]) -> bool:
        """False, and nothing has changed, if the Q's have overflowed."""
        for p in ps:
            orthogonalise(p)
        qs = [matrix.T @ p for matrix, p in zip(self._matrices, ps, strict=True)]
        flat = self._start(qs, "q", qs[0].dtype).wait()
        if not is_finite(flat):
            return False
        _cut(flat, qs)
        for gradient, matrix, p, q in zip(self._low, self._matrices, ps, qs, strict=True):
            product = p @ q.T
            matrix -= product
            gradient.copy_(product.view(gradient.shape))
        self._state.memory.keep(self._bucket, _Kept(self._matrices, qs))
        return True

    def _kept_anew(self) -> _Kept:
        return _Kept([m.zero_() for m in self._matrices], [q.zero_() for q in self._qs])


def orthogonalise(p: torch.Tensor) -> None:
    """Make the columns of `p`, shape (n, r), orthonormal in place; a column that depends on those before becomes zero.

    Modified Gram-Schmidt in float64, each column twice.
    """
    wide = p.double()
    for i in range(wide.shape[1]):
        column, before = wide[:, i], wide[:, :i]
        length = column.norm()
        for _ in range(2):
            for k in range(i):
                column -= before[:, k] * (before[:, k] @ column)
        left = column.norm()
        if left > 1e-7 * length and left > 0:
            column /= left
        else:
            column.zero_()
    p.copy_(wide)


def _sides(gradient: torch.Tensor) -> tuple[int, int]:
    return gradient.shape[0], gradient.numel() // gradient.shape[0]


def _cut(flat: torch.Tensor, into: list[torch.Tensor]) -> None:
    """Copy the parts of `flat` to where they belong."""
    for part, tensor in zip(flat.split([t.numel() for t in into]), into, strict=True):
        tensor.copy_(part.view(tensor.shape))
