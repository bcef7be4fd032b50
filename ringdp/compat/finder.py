"""The import hook: which module stands for each of Horovod's, and what is said about those that have none."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ringdp.errors import UsageError

# Horovod's module: ours. Where Horovod spreads names over several modules, `ringdp.torch` has them all.
MODULES = {
    "horovod": "ringdp.compat.horovod",
    "horovod.common": "ringdp.compat.common",
    "horovod.common.elastic": "ringdp.elastic",
    "horovod.common.exceptions": "ringdp.errors",
    "horovod.common.process_sets": "ringdp.process_sets",
    "horovod.common.util": "ringdp.compat.util",
    "horovod.keras": "ringdp.keras",
    "horovod.keras.callbacks": "ringdp.keras.callbacks",
    "horovod.tensorflow": "ringdp.tensorflow",
    "horovod.tensorflow.compression": "ringdp.tensorflow.compression",
    "horovod.tensorflow.elastic": "ringdp.tensorflow.elastic",
    "horovod.tensorflow.functions": "ringdp.tensorflow",
    "horovod.tensorflow.keras": "ringdp.keras",
    "horovod.tensorflow.keras.callbacks": "ringdp.keras.callbacks",
    "horovod.tensorflow.mpi_ops": "ringdp.tensorflow",
    "horovod.tensorflow.sync_batch_norm": "ringdp.tensorflow.sync_batch_norm",
    "horovod.torch": "ringdp.torch",
    "horovod.torch.compression": "ringdp.torch.compression",
    "horovod.torch.elastic": "ringdp.torch.elastic",
    "horovod.torch.elastic.sampler": "ringdp.torch.elastic.sampler",
    "horovod.torch.elastic.state": "ringdp.torch.elastic.state",
    "horovod.torch.functions": "ringdp.torch",
    "horovod.torch.mpi_ops": "ringdp.torch",
    "horovod.torch.optimizer": "ringdp.torch",
}

_LAUNCHER = (
    "start the script with `ringdp run -n N python script.py`, mpirun or srun; no function starts ranks"
)
MISSING = {
    "horovod.keras.elastic": "elastic jobs are there for PyTorch (docs/elastic.md)",
    "horovod.mxnet": "MXNet has been retired, and ringdp has nothing for it: train with PyTorch",
    "horovod.ray": "ringdp does not start ranks in Ray: start them with `ringdp run`, mpirun or srun",
    "horovod.run": _LAUNCHER,
    "horovod.runner": _LAUNCHER,
    "horovod.spark": "ringdp does not start ranks in Spark: write the data to files, and start with `ringdp run`",
    "horovod.tensorflow.data": "ringdp has no service that prepares data on other hosts",
    "horovod.tensorflow.keras.elastic": "TensorFlowKerasState is in ringdp.tensorflow.elastic; its callbacks are not",
    "horovod.torch.sync_batch_norm": "ringdp has no SyncBatchNorm yet",
}


class _Alias(Loader):
    """Loads a module by putting another one in its place in `sys.modules`."""

    def __init__(self, target: str) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what it finds here afterwards, so that both names are one module: classes are the
        # same ones, and what the script sets in it holds everywhere.
        sys.modules[module.__name__] = importlib.import_module(self.target)


class HorovodFinder(MetaPathFinder):
    """Finds `horovod` and the modules in it, in this package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "horovod" and not fullname.startswith("horovod."):
            return None
        if fullname not in MODULES:
            raise ModuleNotFoundError(why_not(fullname), name=fullname)
        return ModuleSpec(fullname, _Alias(MODULES[fullname]), is_package=True)


def why_not(fullname: str) -> str:
    """What an import of this module of Horovod's says, of which ringdp has no counterpart."""
    for module, reason in MISSING.items():
        if fullname == module or fullname.startswith(module + "."):
            return f"{fullname} is not in ringdp: {reason}"
    return f"{fullname} is not in ringdp: docs/migrating.md lists the names of Horovod's that are"


def install() -> None:
    """Make `import horovod…` find ringdp in this process. A second call does nothing.

    Raises:
        UsageError: the installed Horovod was imported before: call this first.
    """
    if any(isinstance(finder, HorovodFinder) for finder in sys.meta_path):
        return
    if "horovod" in sys.modules:
        raise UsageError(
            "ringdp.compat.install(): horovod was imported before; call install() before the first such import"
        )
    sys.meta_path.insert(0, HorovodFinder())
