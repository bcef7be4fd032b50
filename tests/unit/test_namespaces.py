"""`ringdp`, `ringdp.numpy` and `ringdp.cupy` are alike."""

import subprocess
import sys

import numpy as np
import pytest

import ringdp
import ringdp.numpy as rdp
from ringdp import dtypes
from ringdp.constants import Dtype


def test_numpy_has_the_functions_of_the_top_level() -> None:
    assert rdp.__all__ == ringdp.__all__ and set(ringdp.__all__) <= set(dir(rdp))
    for name in ringdp.__all__:
        assert getattr(rdp, name) == getattr(ringdp, name), name
    with pytest.raises(AttributeError, match="module 'ringdp.numpy' has no attribute 'allredcue'"):
        rdp.allredcue  # noqa: B018


def test_cupy_has_its_own_functions_under_the_same_names() -> None:
    """In a process of its own: the stand-in for CuPy is for those tests alone."""
    script = (
        "import inspect, sys, types; from pathlib import Path; import ringdp\n"
        "cupy = types.ModuleType('cupy'); cupy.ndarray = type('ndarray', (), {}); sys.modules['cupy'] = cupy\n"
        "import ringdp.cupy as rdp\n"
        "assert set(rdp.__all__) == set(ringdp.__all__) - {'empty', 'map_reduce', 'shard'}, rdp.__all__\n"
        "for name in rdp.__all__:\n"
        "    ours, theirs = getattr(rdp, name), getattr(ringdp, name)\n"
        "    if inspect.ismethod(theirs):\n"
        "        assert inspect.signature(ours) == inspect.signature(theirs) and ours.__self__ is not theirs.__self__\n"
        "    else:\n"
        "        assert ours is theirs, name\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_modules_do_not_hide_functions() -> None:
    """`import ringdp.mapreduce` sets an attribute of the package: no public name may be that of a module."""
    script = "import ringdp, ringdp.mapreduce, ringdp.numpy.grouped; assert callable(ringdp.map_reduce)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


def test_the_table_of_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert list(dtypes.BY_NAME.values()) == list(Dtype) == list(dtypes.SIZES)
    for name, dtype in dtypes.BY_NAME.items():
        array = np.zeros(2, getattr(ml_dtypes, name, name))
        assert dtypes.of_array(array) is dtype and dtypes.SIZES[dtype] == array.itemsize
    for unknown in ("complex64", "uint16", ">f4", "datetime64[s]"):
        assert dtypes.of_array(np.zeros(2, unknown)) is None
    text = str(dtypes.unsupported("complex64", "gradient 'w'", "exchange its parts"))
    assert text.startswith("gradient 'w' has dtype complex64, which ringdp cannot exchange; it knows bool, ")
    assert text.endswith(", float8_e5m2 (exchange its parts)")
