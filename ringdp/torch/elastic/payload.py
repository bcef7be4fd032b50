"""State as bytes: tensors and plain data, which `torch.load(weights_only=True)` reads, and the rest pickled."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import torch

from ringdp.commits.files import Put
from ringdp.commits.loading import Payload

PathTo = tuple[Any, ...]  # keys and indices that lead to an object


def pack(value: Any) -> Put:
    """Writes `value`; what it holds must not change until then. (It may be called in another thread.)"""

    def put(sink: Any) -> None:
        objects: list[tuple[PathTo, Any]] = []
        packed: dict[str, Any] = {"plain": _without_objects(value, (), objects)}
        if objects:
            packed["objects"] = torch.frombuffer(bytearray(pickle.dumps(objects)), dtype=torch.uint8)
        torch.save(packed, sink)

    return put


def unpack(payload: Payload) -> Any:
    """What was packed. Tensors of a GPU come to this rank's.

    Unpickles, where there was something that is neither a tensor nor plain: whoever can write the file can run code
    here.
    """
    packed = torch.load(io.BytesIO(payload), map_location=_here, weights_only=True)
    value = packed["plain"]
    if "objects" in packed:
        for path, found in pickle.loads(packed["objects"].numpy().tobytes()):
            value = _with(value, path, found)
    return value


def _here(storage: Any, where: str) -> Any:
    on_gpu = where.startswith("cuda") and torch.cuda.is_available()
    return storage.cuda(torch.cuda.current_device()) if on_gpu else storage


def _without_objects(value: Any, path: PathTo, objects: list[tuple[PathTo, Any]]) -> Any:
    """`value` with None in place of each object, which goes to `objects`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str) or _is_plain_tensor(value):
        return value
    if kind in (dict, OrderedDict) and all(type(key) in (int, str) for key in value):
        inner: Any = kind((key, _without_objects(v, (*path, key), objects)) for key, v in value.items())
        if hasattr(value, "_metadata"):  # versions of modules, in what Module.state_dict() gives
            inner._metadata = value._metadata
        return inner
    if kind in (list, tuple):
        return kind(_without_objects(v, (*path, i), objects) for i, v in enumerate(value))
    objects.append((path, value))
    return None


def _is_plain_tensor(value: Any) -> bool:
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and not value.is_quantized
    )


def _with(value: Any, path: PathTo, found: Any) -> Any:
    """`value` with an object in its place again."""
    if not path:
        return found
    if isinstance(value, tuple):
        return tuple(_with(v, path[1:], found) if i == path[0] else v for i, v in enumerate(value))
    value[path[0]] = _with(value[path[0]], path[1:], found)
    return value
