"""Each framework's package of ours, and how its tensors are made of arrays and turned into them again."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import torch

import ringdp
import ringdp.jax
import ringdp.numpy
import ringdp.torch

torch.set_num_threads(1)


@dataclass(frozen=True)
class Package:
    module: ModuleType
    tensor: Callable[[np.ndarray], Any]
    compiled: Callable[[Callable], Callable]  # a function, as the framework compiles it
    array: Callable[[Any], np.ndarray] = np.asarray

    def exactly(self, result: Any, wanted: np.ndarray) -> bool:
        got = self.array(result)
        return got.dtype == wanted.dtype and got.shape == wanted.shape and bool((got == wanted).all())


PACKAGES = {
    "numpy": Package(ringdp, np.array, lambda f: f),
    "torch": Package(
        ringdp.torch,
        lambda x: torch.tensor(np.asarray(x)),
        lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
        lambda x: x.detach().numpy(),
    ),
    "jax": Package(ringdp.jax, jnp.asarray, jax.jit),
}

if (spec := importlib.util.find_spec("ringdp.tensorflow")) and spec.origin:
    module = importlib.import_module("ringdp.tensorflow")
    PACKAGES["tensorflow"] = Package(module, tf.constant, tf.function, lambda x: x.numpy())


def values(count: int, number: int, rank: int | None = None) -> np.ndarray:
    """Small integers that tell the rank, the index and which operation it is."""
    rank = ringdp.rank() if rank is None else rank
    return (np.arange(count) % 7 + 11 * rank + 100 * number).astype(np.float32)


def total(count: int, number: int) -> np.ndarray:
    return sum(values(count, number, rank) for rank in range(ringdp.size()))
