"""What ringdp raises. Every message names the rank and, where there is one, the operation and the tensor."""

from __future__ import annotations


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


class GpuError(HorovodInternalError):
    """CUDA or NCCL reported an error, or there is no GPU that can be used."""


class InitError(RingdpError):
    """`init()` found something that would go wrong later: no MPI, another MPI, a silent singleton, mixed versions."""
