"""The functions of `horovod.common.util` that training scripts call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def num_rank_is_power_2(num_rank: int) -> bool:
    """Whether Adasum can combine so many ranks."""
    return num_rank > 0 and num_rank.bit_count() == 1


def split_list(l: Sequence[T], n: int) -> list[Sequence[T]]:  # noqa: E741 - Horovod's name
    """`l` cut into `n` consecutive parts, the first ones longer by one where it does not divide."""
    size, longer = divmod(len(l), n)
    starts = [part * size + min(part, longer) for part in range(n + 1)]
    return [l[start:end] for start, end in zip(starts, starts[1:], strict=False)]


def is_iterable(x: Any) -> bool:
    """Whether `iter(x)` works."""
    try:
        iter(x)
    except TypeError:
        return False
    return True


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    """False: ringdp exchanges tensors in host memory."""
    return False


def extension_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Whether there is something for this framework: `torch` alone."""
    return ext_base_name == "torch"


def mpi_built(verbose: bool = False) -> bool:
    """True: MPI carries everything."""
    return True


def gloo_built(verbose: bool = False) -> bool:
    """False, as are the following."""
    return False


nccl_built = ddl_built = ccl_built = gloo_built
