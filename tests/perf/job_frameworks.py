"""A job under mpirun: one all-reduce by each framework's package, in turn, beside that of NumPy arrays.

Every call gives a new tensor, as users write it. What a framework only promises is waited for, as whoever uses the
result does. Timed as in job_allreduce.py; the result of a call of each is compared with what it must be.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

Call = Callable[[], Any]
LOOP_BELOW = 1 << 16  # bytes: calls follow each other; larger ones begin with a barrier


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bytes", default="4,67108864", help="of float32, with commas")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=2.0, help="of a round of one size, about")
    p.add_argument("--out", required=True)
    options = p.parse_args()
    import ringdp

    ringdp.init()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    try:
        measured = measure_all(options, comm)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
        raise
    if comm.rank == 0:
        Path(options.out).write_text(json.dumps(measured))
    ringdp.shutdown()


def measure_all(options: argparse.Namespace, comm: Any) -> dict[str, Any]:
    from mpi4py import MPI
    from perf import job_allreduce

    from ringdp import launch

    points = []
    makers, left_out = able()
    for size in map(int, options.bytes.split(",")):
        mine = np.arange(size // 4, dtype=np.float32) % 4096 + comm.rank
        wanted = (np.arange(size // 4) % 4096) * comm.size + sum(range(comm.size))
        calls = [make(mine) for make in makers.values()]
        wrong = [int((np.asarray(call()) != wanted).sum()) for call in calls]
        timed = job_allreduce.loop if size < LOOP_BELOW else job_allreduce.each
        for name, bad, us in zip(makers, wrong, timed(calls, comm, options), strict=True):
            points.append({"entry": name, "bytes": size, "us": us, "wrong": comm.allreduce(bad)})
    library = launch.library_name(MPI.Get_library_version())
    return {"ranks": comm.size, "mpi": library, "points": points, "left_out": left_out}


def able() -> tuple[dict[str, Callable[[np.ndarray], Call]], dict[str, str]]:
    """Those whose framework, and our package for it, are there; and for each other one why not."""
    makers, left_out = {}, {}
    for name, prepare in ENTRIES.items():
        try:
            makers[name] = prepare()
        except ImportError as error:
            left_out[name] = str(error)
    return makers, left_out


# ---- The entries: imports once, then what turns an array of this rank into a call ------------------------------------


def with_numpy() -> Callable[[np.ndarray], Call]:
    import ringdp

    return lambda mine: lambda: ringdp.allreduce(mine, op=ringdp.Sum)


def with_torch() -> Callable[[np.ndarray], Call]:
    import torch

    import ringdp.torch as hvd

    torch.set_num_threads(1)

    def make(mine: np.ndarray) -> Call:
        tensor = torch.from_numpy(mine)
        return lambda: hvd.allreduce(tensor, op=hvd.Sum)

    return make


def with_tensorflow(compiled: bool) -> Callable[[np.ndarray], Call]:
    import tensorflow as tf

    import ringdp.tensorflow as hvd

    def make(mine: np.ndarray) -> Call:
        tensor = tf.constant(mine)

        def call(x: Any) -> Any:
            return hvd.allreduce(x, op=hvd.Sum, name=f"of {mine.nbytes} bytes")

        call = tf.function(call) if compiled else call
        return lambda: call(tensor)

    return make


def with_jax(compiled: bool) -> Callable[[np.ndarray], Call]:
    import jax

    import ringdp.jax as rdp

    def make(mine: np.ndarray) -> Call:
        tensor = jax.device_put(mine)

        def call(x: Any) -> Any:
            return rdp.allreduce(x, op=rdp.Sum, name=f"of {mine.nbytes} bytes")

        call = jax.jit(call) if compiled else call
        return lambda: call(tensor).block_until_ready()

    return make


ENTRIES: dict[str, Callable[[], Callable[[np.ndarray], Call]]] = {
    "NumPy": with_numpy,
    "PyTorch": with_torch,
    "TensorFlow": lambda: with_tensorflow(False),
    "TensorFlow, `tf.function`": lambda: with_tensorflow(True),
    "JAX": lambda: with_jax(False),
    "JAX, `jit`": lambda: with_jax(True),
}

if __name__ == "__main__":
    main()
