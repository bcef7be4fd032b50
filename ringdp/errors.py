"""What ringdp raises. Every message names the rank and, where there is one, the operation and the tensor."""

from __future__ import annotations

import math


class RingdpError(RuntimeError):
    """Anything that goes wrong in ringdp; the base of all others."""


class HorovodInternalError(RingdpError):
    """An exchange with other ranks has failed: what Horovod raises this for. The base of the errors that ranks get from
    one another, so that `except HorovodInternalError` catches what it caught there, and `elastic.run` goes back to the
    last commit.
    """


class HostsUpdatedInterrupt(RuntimeError):
    """The ranks of an elastic job are about to change: `elastic.run` begins anew without going back to the last commit.

    Args:
        skip_sync: also without `state.sync()`: where ranks only leave, those that stay have the same state.
    """

    def __init__(self, skip_sync: bool = False) -> None:
        super().__init__("the ranks of the job are about to change")
        self.skip_sync = skip_sync


class UsageError(RingdpError, ValueError):
    """A call that cannot be right on this rank alone: a wrong root, splits that do not add up, an unknown dtype."""


class MismatchError(HorovodInternalError, ValueError):
    """The ranks disagree about an operation (shape, dtype, operation, scale, root, plan).

    Raised on every rank concerned; no output was touched, and the job can go on after catching it.
    """


class DuplicateNameError(HorovodInternalError, ValueError):
    """An operation of this name is still in flight on this rank."""


class NotInitializedError(RingdpError):
    """A call before `init()`, after `shutdown()`, or in a child process of a rank."""


class DeadlineError(HorovodInternalError, TimeoutError):
    """Other ranks did not come within RINGDP_TIMEOUT seconds."""


class PeerError(HorovodInternalError):
    """Another rank left, failed or gave up the operation."""


class TransportError(HorovodInternalError):
    """MPI reported an error."""


class ChecksumError(HorovodInternalError):
    """A message between two ranks was damaged on its way (RINGDP_CHECKSUM).

    Raised on every rank of the operation, with the pair of ranks and the segment; what its output holds is void. The
    job can go on after catching it, unless it was a message by which the ranks agree: then the rank that it came to
    raises this from now on, and the others `PeerError`.
    """


class GpuError(HorovodInternalError):
    """CUDA or NCCL reported an error, or there is no GPU that can be used."""


class NonFiniteError(RingdpError, FloatingPointError):
    """A rank's gradients hold an inf or a NaN (`DistributedOptimizer(check_finite="raise")`). The same on every rank;
    no parameter was changed.

    Attributes:
        found: (rank, parameter's name, flat index, value) of each rank that has some: the first that left.
        rank, parameter, index, value: those of the first of these ranks.
    """

    found: list[tuple[int, str, int, float]] = []
    rank = -1
    parameter = ""
    index = -1
    value = math.nan


class ReplicaError(RingdpError):
    """The ranks' parameters have come apart (`DistributedOptimizer(check_replicas_every=M)`). The same on every rank.

    Attributes:
        ranks: those outside the largest group of ranks with equal parameters; empty if there is no largest.
        groups: ranks with equal parameters, the largest group first.
        parameter: the name of the first parameter that differs.
        step: how many steps the optimizer had taken.
    """

    ranks: list[int] = []
    groups: list[list[int]] = []
    parameter = ""
    step = -1


class VerificationError(HorovodInternalError):
    """A bucket came out otherwise when it was exchanged a second time, or not the same on all ranks
    (`DistributedOptimizer(verify_every=K)`): some machine has computed or stored wrong bits. The same on every rank; no
    parameter was changed.

    Attributes:
        bucket: its number in the plan.
        ranks: those that have other bits than most; empty if it cannot be told.
    """

    bucket = -1
    ranks: list[int] = []


class MissingGradientError(MismatchError):
    """Some ranks have no gradient for a parameter that has one on others
    (`DistributedOptimizer(missing_gradients="raise")`). The same on every rank; no parameter was changed.

    Attributes:
        missing: names of parameters, by the rank that lacks their gradients.
    """

    missing: dict[int, list[str]] = {}


class InjectedError(RingdpError):
    """RINGDP_INJECT has asked for an exception: see docs/promises.md."""


class InitError(RingdpError):
    """`init()` found something that would go wrong later: no MPI, another MPI, a silent singleton, mixed versions."""
