"""setup.py as a module, for tests of what it does."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from driver.phases import ROOT


def load_setup() -> ModuleType:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("ringdp_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module
