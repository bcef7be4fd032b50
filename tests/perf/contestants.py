"""Who takes part: those of `ringdp bench`, and more forms of them, the floors, and the raw link.

An entry is written NAME or NAME:DTYPE; without one, float32. Beside what `ringdp bench` asks of a contestant, most have
`call`: the in-place all-reduce of one array, ready to be called without arguments, as short as its users can write it.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from cluster import stream
from perf import floor

from ringdp.cli import contestants as known
from ringdp.cli.measure import ITEMSIZE

LINK_PORT = 6101


class Ringdp(known.Ringdp):
    """NumPy arrays; where only torch has the dtype, its tensors."""

    def call(self, x: Any, op: str) -> Callable[[], object]:
        return partial(self._module.allreduce_, x, op=getattr(self._module, self._OPS[op]))

    def tensor(self, values: np.ndarray, dtype: str) -> Any:
        import torch

        return torch.from_numpy(values).to(getattr(torch, dtype), copy=True)

    def numbers(self, x: Any) -> np.ndarray:
        return x if isinstance(x, np.ndarray) else x.float().numpy()


class RingdpTorch(Ringdp):
    name = "ringdp-torch"

    def __init__(self) -> None:
        import ringdp.torch

        self._module: Any = ringdp.torch

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return self.tensor(values, dtype)


class RingdpShared(Ringdp):
    """Arrays in memory shared by the ranks of a host, from `ringdp.empty`."""

    name = "ringdp-shared"

    def refusal(self, dtype: str, op: str) -> str | None:
        return super().refusal(dtype, op) or _lacks(self._module, "empty")

    def array(self, values: np.ndarray, dtype: str) -> Any:
        if dtype == "bfloat16":
            return _filled_tensor(values, dtype)
        x = self._module.empty(values.shape, np.dtype(dtype))
        x[...] = values
        return x


class RingdpTorchShared(RingdpTorch):
    name = "ringdp-torch-shared"

    def refusal(self, dtype: str, op: str) -> str | None:
        return _lacks(self._module, "empty")

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return _filled_tensor(values, dtype)


def _filled_tensor(values: np.ndarray, dtype: str) -> Any:
    import torch

    import ringdp.torch

    x = ringdp.torch.empty(values.shape, dtype=getattr(torch, dtype))
    return x.copy_(torch.from_numpy(values))


class RingdpOnTheWire(RingdpTorch):
    """float32 tensors, sent in 16 bits by Compression.bf16 or .fp16, into new ones."""

    def __init__(self, compression: str) -> None:
        super().__init__()
        self.name = f"ringdp-wire-{compression}"
        self._compression = getattr(self._module.Compression, compression)

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return self.tensor(values, "float32")

    def call(self, x: Any, op: str) -> Callable[[], object]:
        chosen = getattr(self._module, self._OPS[op])
        return partial(self._module.allreduce, x, op=chosen, compression=self._compression)

    def allreduce_(self, x: Any, op: str) -> Any:
        return self.call(x, op)()


class Mpi(known.Mpi):
    def call(self, x: np.ndarray, op: str) -> Callable[[], object]:
        return partial(self._comm.Allreduce, self._in_place, x, self._op(x, op))


class MpiOut(known.Mpi):
    """Into another array, the form that MPI prefers."""

    name = "mpi-out"

    def call(self, x: np.ndarray, op: str) -> Callable[[], object]:
        return partial(self._comm.Allreduce, x, np.empty_like(x), self._op(x, op))

    def allreduce_(self, x: np.ndarray, op: str) -> np.ndarray:
        return self.allreduce(x, op)


class RawLink:
    """Moves what each host must send and receive at the least, 2(H-1)/H of the bytes for H hosts, by plain TCP.

    One stream from each host to the next, both ways of every link busy at once; the other ranks of a host wait.
    """

    name = "raw-link"

    def __init__(self, comm: Any) -> None:
        import ringdp

        self._hosts = ringdp.cross_size()
        addresses = comm.allgather((ringdp.local_rank(), ringdp.cross_rank(), _address_of_eth0()))
        by_host = {host: address for local, host, address in addresses if local == 0}
        self._streams = None
        if ringdp.local_rank() == 0:
            me, after = ringdp.cross_rank(), (ringdp.cross_rank() + 1) % self._hosts
            self._streams = stream.open_ring(by_host[me], by_host[after], LINK_PORT)

    def refusal(self, dtype: str, op: str) -> str | None:
        return "there is only one host" if self._hosts < 2 else None

    def array(self, values: np.ndarray, dtype: str) -> Any:
        return values.size * ITEMSIZE[dtype]

    def call(self, x: int, op: str) -> Callable[[], object]:
        if self._streams is None:
            return lambda: None
        return partial(stream.pass_on, *self._streams, 2 * (self._hosts - 1) * x // self._hosts)

    def allreduce_(self, x: int, op: str) -> int:
        raise NotImplementedError("it reduces nothing")

    allreduce = allreduce_

    def numbers(self, x: int) -> np.ndarray:
        raise NotImplementedError("it reduces nothing")

    def close(self) -> None:
        for one in self._streams or ():
            one.close()


def _address_of_eth0() -> str:
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            answer = fcntl.ioctl(s.fileno(), 0x8915, struct.pack("256s", b"eth0"))  # SIOCGIFADDR
        except OSError:
            return "127.0.0.1"
    return socket.inet_ntoa(answer[20:24])


class Horovod(RingdpTorch):
    """Horovod's own all-reduce of torch tensors. Its thread never sleeps: it takes part in jobs of its own only."""

    name = "horovod"

    def __init__(self) -> None:
        import horovod.torch

        self._module = horovod.torch
        self._module.init()

    def close(self) -> None:
        self._module.shutdown()


# --- by name ---


@dataclass(frozen=True)
class Entry:
    """One contestant with the dtype of its arrays; `checked` has what is compared: 16 bits on the wire round."""

    spelled: str
    one: Any
    dtype: str
    checked: str | None

    def ready(self, x: Any, op: str) -> Callable[[], object]:
        call = getattr(self.one, "call", None)
        return call(x, op) if call else partial(self.one.allreduce_, x, op)


def _lacks(module: Any, *names: str) -> str | None:
    missing = [name for name in names if not hasattr(module, name)]
    return f"this {module.__name__} has no {', '.join(missing)}" if missing else None


def _on_the_wire(compression: str) -> known.Contestant | str:
    import ringdp.torch

    if "compression" not in inspect.signature(ringdp.torch.allreduce).parameters:
        return "this ringdp.torch.allreduce takes no compression"
    return _lacks(ringdp.torch.Compression, compression) or RingdpOnTheWire(compression)


def make(name: str, comm: Any, library: str) -> known.Contestant | str:
    """The contestant, or why there is none; the same on every rank."""
    if "torch" in name and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    makers: dict[str, Callable[[], Any]] = {
        "ringdp": Ringdp,
        "ringdp-torch": RingdpTorch,
        "ringdp-shared": RingdpShared,
        "ringdp-torch-shared": RingdpTorchShared,
        "ringdp-wire-bf16": lambda: _on_the_wire("bf16"),
        "ringdp-wire-fp16": lambda: _on_the_wire("fp16"),
        "mpi": lambda: Mpi(comm),
        "mpi-out": lambda: MpiOut(comm),
        "gloo": lambda: known.peer("gloo", comm),
        "floor-in-place": lambda: floor.InPlaceFloor(comm, library),
        "floor-staged": lambda: floor.StagedFloor(comm, library),
        "raw-link": lambda: RawLink(comm),
        "horovod": lambda: Horovod() if importlib.util.find_spec("horovod") else "it is not installed",
    }
    return makers[name]()


def entries(spelled: list[str], comm: Any, library: str, op: str) -> tuple[list[Entry], dict[str, str]]:
    """Those that can take part, and for each other one why not."""
    made: dict[str, known.Contestant | str] = {}
    able, left_out = [], {}
    for text in spelled:
        name, _, dtype = text.partition(":")
        dtype = dtype or "float32"
        key = text if name.startswith("ringdp") else name  # which module serves it depends on the dtype
        if key not in made:
            made[key] = make(name, comm, library)
        one = made[key]
        reason = one if isinstance(one, str) else one.refusal(dtype, op)
        if reason:
            left_out[text] = str(reason)
        else:
            checked = None if name == "raw-link" else "bfloat16" if "wire" in name else dtype
            able.append(Entry(text, one, dtype, checked))
    return able, left_out
