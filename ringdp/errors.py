"""What ringdp raises. Every message names the rank and, where there is one, the operation and the tensor."""

from __future__ import annotations


class RingdpError(RuntimeError):
    """Anything that goes wrong in ringdp; the base of all others."""


class UsageError(RingdpError, ValueError):
    """A call that cannot be right on this rank alone: a wrong root, splits that do not add up, an unknown dtype."""


class MismatchError(RingdpError, ValueError):
    """The ranks disagree about an operation (shape, dtype, operation, scale, root, plan).

    Raised on every rank concerned; no output was touched, and the job can go on after catching it.
    """


class DuplicateNameError(RingdpError, ValueError):
    """An operation of this name is still in flight on this rank."""


class NotInitializedError(RingdpError):
    """A call before `init()`, after `shutdown()`, or in a child process of a rank."""


class DeadlineError(RingdpError, TimeoutError):
    """Other ranks did not come within RINGDP_TIMEOUT seconds."""


class PeerError(RingdpError):
    """Another rank left, failed or gave up the operation."""


class TransportError(RingdpError):
    """MPI reported an error."""


class InitError(RingdpError):
    """`init()` found something that would go wrong later: no MPI, another MPI, a silent singleton, mixed versions."""
