"""The functions of `ringdp` for NumPy arrays, by way of those of `ringdp.cupy`: what the rank suite calls with --gpu.

Each call is made in a stream of its rank's own. The inputs are uploaded in it just before, and the result is fetched in
it just after, so whatever the core does not order shows.
"""

from __future__ import annotations

import functools

import numpy as np

import ringdp

BLOCKING = "allreduce", "allgather", "broadcast", "alltoall", "reducescatter"
KINDS = "biufc"  # of dtypes that CuPy has; the stand-in has those of ml_dtypes, too
MANY = False  # ranks are threads of one process, and each has a device; else processes take them in turn
_places = {}


def place():
    """This rank's device and stream."""
    import cupy

    number = ringdp.rank() if MANY else ringdp.local_rank() % cupy.cuda.runtime.getDeviceCount()
    if number not in _places:
        device = cupy.cuda.Device(number)
        with device:
            _places[number] = device, cupy.cuda.Stream()
    return cupy.cuda.Device(number), _places[number][1]


def fetched(result):
    if isinstance(result, tuple):
        return tuple(fetched(one) for one in result)
    return result.get() if hasattr(result, "__cuda_array_interface__") else result


class Handle:
    """The result comes as a NumPy array, into `target` if the operation is in place."""

    def __init__(self, handle, target=None):
        self._handle, self._target = handle, target

    def poll(self):
        return self._handle.poll()

    def wait(self):
        device, stream = place()
        with device, stream:
            result = fetched(self._handle.wait())
        return result if self._target is None else into(self._target, result)


class GroupHandle(Handle):
    """The same, of several."""

    def wait(self):
        device, stream = place()
        with device, stream:
            results = [fetched(one) for one in self._handle.wait()]
        if self._target is None:
            return results
        return [into(x, one) for x, one in zip(self._target, results, strict=True)]


def call(function, original, tensor, /, *args, **options):
    import cupy

    import ringdp.cupy as functions

    if not isinstance(tensor, np.ndarray) or not hasattr(functions, function):
        return original(tensor, *args, **options)
    if tensor.dtype.kind not in KINDS or not tensor.dtype.isnative:
        return original(tensor, *args, **options)  # to be refused: CuPy has no such arrays
    if function.endswith("_") and not tensor.flags.writeable:
        return original(tensor, *args, **options)
    is_async, in_place = "_async" in function, function.endswith("_")
    target = tensor if in_place else options.get("out")
    device, stream = place()
    with device, stream:
        uploaded = cupy.array(tensor, order="C")  # copies, and runs no kernel of CuPy's
        if target is not None and not in_place:
            options["out"] = cupy.array(target, order="C")
        result = getattr(functions, function)(uploaded, *args, **options)
        if is_async:
            return Handle(result, target)
        got = fetched(result)
    return got if target is None else into(target, got)


def into(target, got):
    if isinstance(got, tuple):
        return into(target, got[0]), *got[1:]
    target[...] = got
    return target


def call_group(function, original, tensors, /, *args, **options):
    """All on the GPU, or none."""
    import cupy

    import ringdp.cupy as functions

    if not tensors or any(x.dtype.kind not in KINDS for x in tensors):
        return original(tensors, *args, **options)
    device, stream = place()
    with device, stream:
        uploaded = [cupy.array(x, order="C") for x in tensors]
        result = getattr(functions, function)(uploaded, *args, **options)
        if "_async" in function:
            return GroupHandle(result, tensors if function.endswith("_") else None)
        got = [fetched(one) for one in result]
    return [into(x, one) for x, one in zip(tensors, got, strict=True)] if function.endswith("_") else got


def replace_functions(many, real):
    """From now on, in this process."""
    global MANY, KINDS
    MANY, KINDS = many, KINDS if real else KINDS + "V"
    for base in BLOCKING:
        for name in (base, base + "_", base + "_async", base + "_async_"):
            original = getattr(ringdp, name, None)
            if original is not None:
                setattr(ringdp, name, functools.partial(call, name, original))
            group = getattr(ringdp, f"grouped_{name}", None)
            if group is not None:
                setattr(ringdp, f"grouped_{name}", functools.partial(call_group, f"grouped_{name}", group))
    ringdp.synchronize = lambda handle: handle.wait()
    ringdp.poll = lambda handle: handle.poll()
