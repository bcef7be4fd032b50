"""The contestants of `ringdp bench allreduce`: ringdp itself, MPI_Allreduce, and gloo of torch.distributed.

Each offers the same few functions; `array` makes its kind of buffer from NumPy values, `numbers` turns one back. The
out-of-place form of each is what its users have: ringdp returns a new array, MPI fills one that is there, and gloo,
which works in place only, needs a copy first; the copy counts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ringdp.cli import network

if TYPE_CHECKING:
    from mpi4py import MPI

_DEADLINE = timedelta(seconds=20)


class Contestant(Protocol):
    name: str

    def refusal(self, dtype: str, op: str) -> str | None:
        """Why it cannot do this, or None; the same on all ranks."""

    def array(self, values: np.ndarray, dtype: str) -> Any: ...

    def allreduce(self, x: Any, op: str) -> Any: ...

    def allreduce_(self, x: Any, op: str) -> Any:
        """The result, in `x`, which is returned."""

    def numbers(self, x: Any) -> np.ndarray: ...

    def close(self) -> None:
        """Gives back what it holds; on all ranks, after the last call."""


class Ringdp:
    """This library, by its public functions: NumPy arrays, and for bfloat16 torch tensors."""

    name = "ringdp"
    _OPS = {"sum": "Sum", "avg": "Average", "min": "Min", "max": "Max", "prod": "Product"}

    def __init__(self) -> None:
        import ringdp

        self._module: Any = ringdp  # ringdp.torch instead, where only torch has the dtype

    def refusal(self, dtype: str, op: str) -> str | None:
        if dtype == "bool" and op == "avg":
            return "bool has no average"
        if dtype == "bfloat16":
            if importlib.util.find_spec("torch") is None:
                return "bfloat16 needs torch, which is not installed"
            import ringdp.torch

            self._module = ringdp.torch
        return None

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return _tensor(values, dtype) if dtype == "bfloat16" else values.copy()

    def allreduce(self, x: Any, op: str) -> Any:
        return self._module.allreduce(x, op=getattr(self._module, self._OPS[op]), name="bench.out_of_place")

    def allreduce_(self, x: Any, op: str) -> Any:
        return self._module.allreduce_(x, op=getattr(self._module, self._OPS[op]), name="bench.in_place")

    def numbers(self, x: Any) -> np.ndarray:
        return x if isinstance(x, np.ndarray) else x.float().numpy()

    def close(self) -> None:
        self._module.barrier()


class Mpi:
    """MPI_Allreduce through mpi4py, on a communicator of its own."""

    name = "mpi"

    def __init__(self, comm: MPI.Intracomm) -> None:
        from mpi4py import MPI

        self._comm, self._in_place = comm.Dup(), MPI.IN_PLACE
        self._output = np.empty(0)
        self._ops = {"sum": MPI.SUM, "min": MPI.MIN, "max": MPI.MAX, "prod": MPI.PROD}
        self._bool_ops = {"sum": MPI.LOR, "max": MPI.LOR, "min": MPI.LAND, "prod": MPI.LAND}

    def refusal(self, dtype: str, op: str) -> str | None:
        if dtype in ("float16", "bfloat16"):
            return f"MPI has no {dtype}"
        return "MPI has no average" if op == "avg" else None

    def array(self, values: np.ndarray, dtype: str) -> np.ndarray:
        self._output = np.empty_like(values)
        return values.copy()

    def _op(self, x: np.ndarray, op: str) -> MPI.Op:
        return (self._bool_ops if x.dtype == bool else self._ops)[op]

    def allreduce(self, x: np.ndarray, op: str) -> np.ndarray:
        self._comm.Allreduce(x, self._output, self._op(x, op))
        return self._output

    def allreduce_(self, x: np.ndarray, op: str) -> np.ndarray:
        self._comm.Allreduce(self._in_place, x, self._op(x, op))
        return x

    def numbers(self, x: np.ndarray) -> np.ndarray:
        return x

    def close(self) -> None:
        self._comm.Free()


class Gloo:
    """The gloo backend of torch.distributed, which DistributedDataParallel uses on CPU."""

    name = "gloo"
    _OPS = {"sum": "SUM", "min": "MIN", "max": "MAX", "prod": "PRODUCT"}

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Raises RuntimeError, on every rank, when the ranks cannot reach each other."""
        import torch.distributed as dist

        address, server, port, error = network.gloo_address(comm), None, 0, ""
        if comm.rank == 0:  # port 0: any free one
            server = dist.TCPStore(address, 0, comm.size, True, _DEADLINE, wait_for_workers=False)
            port = server.port
        port = comm.bcast(port)
        try:
            store = server or dist.TCPStore(address, port, comm.size, False, _DEADLINE)
        except RuntimeError:
            error = f"rank {comm.rank} cannot reach rank 0 at {address}:{port}"
        _together(comm, error)
        try:
            dist.init_process_group(
                "gloo", store=store, rank=comm.rank, world_size=comm.size, timeout=_DEADLINE
            )
        except RuntimeError as problem:
            error = f"rank {comm.rank}: {str(problem).splitlines()[0]}"
        _together(comm, error)
        self._dist = dist

    def refusal(self, dtype: str, op: str) -> str | None:
        if op not in self._OPS:
            return "gloo has no average"
        try:  # it says itself which dtypes it takes, on all ranks alike
            self.allreduce_(_tensor(np.ones(1, np.float32), dtype), op)
        except (RuntimeError, ValueError) as error:
            return f"gloo refuses {dtype}: {str(error).splitlines()[0]}"
        return None

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return _tensor(values, dtype)

    def allreduce(self, x: Any, op: str) -> Any:
        return self.allreduce_(x.clone(), op)

    def allreduce_(self, x: Any, op: str) -> Any:
        self._dist.all_reduce(x, getattr(self._dist.ReduceOp, self._OPS[op]))
        return x

    def numbers(self, x: Any) -> np.ndarray:
        import torch

        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()

    def close(self) -> None:
        self._dist.destroy_process_group()  # its threads may not outlive the interpreter


def _together(comm: MPI.Intracomm, error: str) -> None:
    """Raises the first rank's error on all ranks, so that none goes on alone."""
    errors = [text for text in comm.allgather(error) if text]
    if errors:
        raise RuntimeError(errors[0])


def _tensor(values: np.ndarray, dtype: str) -> Any:
    import torch

    return torch.from_numpy(values).to(getattr(torch, dtype), copy=True)


def peer(name: str, comm: MPI.Intracomm) -> Contestant | str:
    """The peer, or why there is none; the same answer on every rank."""
    if name == "gloo":
        if not all(comm.allgather(importlib.util.find_spec("torch") is not None)):
            return "torch is not installed on every rank: pip install torch"
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_gloo_available()):
            return "this torch is built without gloo"
    makers: dict[str, Callable[[MPI.Intracomm], Contestant]] = {"mpi": Mpi, "gloo": Gloo}
    try:
        return makers[name](comm)
    except RuntimeError as error:
        return f"it cannot start: {error}; name the network in GLOO_SOCKET_IFNAME"
