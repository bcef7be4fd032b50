"""Tensors of PyTorch in the stand-in's device memory, so that what ringdp does with those on GPUs runs without one.

PyTorch itself takes them for tensors on the CPU, and computes at once. Before it does, this thread's current stream of
the stand-in is waited for: what the core does in streams of its own is seen where it has ordered that stream behind it,
and nowhere else. Memory that PyTorch gives up is overwritten in the stream it came from. Operations on tensors here and
there together are refused, as PyTorch refuses them.

What this cannot show: that PyTorch's kernels run behind the host, that its backward passes have threads of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref

import cupy
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten, tree_map

from ringdp.torch import device, ops
from ringdp.torch.distributed.futures import Future
from standin.made_by import is_of_ringdp

# Of what is on the CPU and what is not, PyTorch copies both ways, and takes indices.
MIXED = {"_foreach_copy_", "_to_copy", "copy_", "index", "index_put_", "index_select"}
# What gives the host a number from the GPU, and so waits for it.
READING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item"}
host_waits = []  # of ringdp's own
STEP = 512  # what memory is given out in, so that most of it is used again
_blocks = {}  # address: bytes, of memory on the GPU
_users = {}  # address: streams that use it beside the one that it is of


def is_on_gpu(tensor):
    if tensor.layout is torch.sparse_coo:
        return is_on_gpu(tensor._values())
    try:
        return tensor.untyped_storage().data_ptr() in _blocks
    except (NotImplementedError, RuntimeError):  # of tensors that have no memory
        return False


def gpu_of(tensor):
    return 0


def current_stream(gpu=0):
    return cupy.cuda.get_current_stream().ptr


def in_stream(gpu, stream):
    return cupy.cuda.ExternalStream(stream)


def like_this_thread(gpus, original=device.like_this_thread):
    """Modes of PyTorch are of one thread, too."""
    streams, mode = original(gpus), _get_current_dispatch_mode()

    @contextlib.contextmanager
    def like_it():
        with streams, contextlib.nullcontext() if mode is None else OnGpu(mode.everything, mode.strictly):
            yield

    return like_it()


def follow(gpu, streams):
    for stream in streams:
        with in_stream(gpu, stream):
            mark = Mark(gpu)
        mark.order()


def used_in_current_stream(tensor):
    _users.setdefault(tensor.untyped_storage().data_ptr(), set()).add(current_stream())


class Mark:
    def __init__(self, gpu):
        self._event = cupy.cuda.Event()
        self._event.record()

    def order(self):
        cupy.cuda.get_current_stream().wait_event(self._event)

    def passed(self):
        return self._event.query()


def stream_beside(gpu):
    made, mode = stream("beside"), _get_current_dispatch_mode()

    @contextlib.contextmanager
    def inside():
        with made, contextlib.nullcontext() if mode is None else OnGpu(mode.everything, mode.strictly):
            yield

    return inside


def of_future(gpu):
    """PyTorch orders no streams of the stand-in: a future is completed when the GPU is done (`use`)."""
    return []


def in_host_memory(tensor):
    wait_for(current_stream())
    with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
        return tensor.clone()


def move_beside(value, like):
    return on_gpu(value) if is_on_gpu(like) else value


def empty(place, shape, like):
    with in_stream(place.gpu, place.stream):
        return on_gpu(like.new_empty(tuple(shape)))  # in the engine's thread, where no mode is on


def wait_for(stream):
    """But not for what is only captured."""
    if cupy.cuda.ExternalStream(stream).is_capturing():
        return
    with cupy.driver.inside(0):
        cupy.driver.call("cuStreamSynchronize", ctypes.c_void_p(stream))


def storage(nbytes):
    """Memory on the GPU."""
    size = max(nbytes, 1)
    with cupy.driver.relaxed():
        block = cupy.empty(-(-size // STEP) * STEP, "uint8")
    array = (ctypes.c_char * size).from_address(block.data.ptr)
    _blocks[block.data.ptr] = nbytes
    weakref.finalize(array, _gone, block.data.ptr, block, current_stream()).atexit = False
    wait_for(current_stream())  # what has freed it before may still write there
    return torch.frombuffer(array, dtype=torch.uint8).untyped_storage()


def _gone(address, block, stream):
    """As PyTorch's allocator does it, whoever gets the memory next comes after its users."""
    del _blocks[address]
    for user in _users.pop(address, ()):
        with in_stream(0, user):
            mark = Mark(0)
        with in_stream(0, stream):
            mark.order()


def on_gpu(tensor):
    """A copy there. Not one of autograd's operations."""
    if tensor.layout is torch.sparse_coo:
        parts = on_gpu(tensor._indices()), on_gpu(tensor._values())
        return torch.sparse_coo_tensor(
            *parts, tensor.shape, is_coalesced=tensor.is_coalesced(), check_invariants=False
        )
    given = tensor.untyped_storage()
    made = storage(given.nbytes())
    ctypes.memmove(made.data_ptr(), given.data_ptr(), given.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(
        made, tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _kernel_of(operator):
    from ringdp.torch import operators

    return getattr(operators, f"_{operator.overloadpacket.__name__}")


class OnGpu(TorchDispatchMode):
    """While it is on: what is computed from tensors on the GPU is there too. `everything`: and all that tests make.

    `strictly`: refuse tensors there and here together also then, as PyTorch does. (What was made before the test, or
    read from a file, is on the CPU.)
    """

    supports_higher_order_operators = True

    def __init__(self, everything=False, strictly=False):
        super().__init__()
        self.everything, self.strictly = everything, strictly or not everything

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):  # with_effects, which calls one of ours
            with self:
                return func.py_kernels[torch._C.DispatchKey.CompositeExplicitAutograd](*args, **kwargs)
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        here = [is_on_gpu(x) for x in given]
        if any(here):
            if not func.is_view:  # which looks at no element
                wait_for(current_stream())
            if func.overloadpacket.__name__ in READING and is_of_ringdp():
                host_waits.append(func)
            if self.strictly:
                self._refuse_mixture(func, given, here)
        if func.namespace == "ringdp" and any(here):  # an operator of ours, which makes tensors
            with self:
                made = _kernel_of(func)(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
        if any(here) or (self.everything and not is_of_ringdp()):
            known = {x.untyped_storage().data_ptr() for x in given if x.layout is torch.strided}
            if func is torch.ops.aten.lift_fresh.default:  # of torch.tensor
                known = set()
            made = tree_map(lambda x: self._moved(x, known), made)
        return made

    @classmethod
    def ignore_compile_internals(cls):
        """Graphs are made without the mode, and run in it: else PyTorch would compile nothing."""
        return True

    @staticmethod
    def _moved(made, known):
        if type(made) is not torch.Tensor or not made.is_cpu or made.is_quantized or is_on_gpu(made):
            return made
        if made.layout is torch.strided and made.untyped_storage().data_ptr() in known - {0}:
            return made
        return on_gpu(made)

    @staticmethod
    def _refuse_mixture(func, given, here):
        if func.overloadpacket.__name__ in MIXED:
            return
        strangers = [x for x, there in zip(given, here, strict=True) if not there and x.dim() > 0]
        if strangers:
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but {strangers[0].shape} is not"
            )


def use():
    """ringdp.torch asks here about devices and streams from now on."""
    for function in (
        is_on_gpu,
        gpu_of,
        current_stream,
        in_stream,
        like_this_thread,
        follow,
        used_in_current_stream,
        move_beside,
        Mark,
        stream_beside,
        of_future,
        in_host_memory,
    ):
        setattr(device, function.__name__, function)
    device.Place.empty = empty
    ops.operations._direct = ()  # the core takes a tensor of the CPU for one
    for name in ("tolist", "numpy", "__reduce_ex__"):  # which read memory without asking the dispatcher
        setattr(torch.Tensor, name, _after_waiting(getattr(torch.Tensor, name)))
    torch.Tensor.cpu = _fetched
    Future.set_result = _when_done(Future.set_result)


def _after_waiting(method):
    def call(tensor, *args, **kwargs):
        if is_on_gpu(tensor):
            wait_for(current_stream())
            if is_of_ringdp():
                host_waits.append(method)
        return method(tensor, *args, **kwargs)

    return call


def _when_done(complete):
    def call(future, result):
        wait_for(current_stream())
        complete(future, result)

    return call


def _fetched(tensor):
    if not is_on_gpu(tensor):
        return tensor
    if is_of_ringdp():
        host_waits.append("cpu")
    return in_host_memory(tensor)


@functools.cache
def _much():
    return cupy.empty(64 << 20, "uint8"), cupy.empty(64 << 20, "uint8")


def keep_busy(times=10):
    """The current stream has something to do, for a tenth of a second or so."""
    to, source = _much()
    for _ in range(times):
        to[...] = source


def write_late(tensor, values):
    """The current stream writes these values into a dense tensor, but has other things to do first."""
    source = cupy.array(values.numpy())
    keep_busy()
    runtime = cupy.cuda.runtime
    runtime.memcpyAsync(
        tensor.data_ptr(), source.data.ptr, source.nbytes, runtime.memcpyDeviceToDevice, current_stream()
    )


@functools.cache
def stream(name="of the tests"):
    """Made once, as the memory that is freed in a stream is used again in that one alone."""
    return cupy.cuda.Stream()
