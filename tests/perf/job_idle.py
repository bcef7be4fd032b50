"""A job under mpirun: how much of a core the engine's thread takes while its rank sleeps."""

import argparse
import json
import sys
import time
from pathlib import Path

ENGINE = "ringdp-engine"  # the thread's name


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--out", required=True)
    options = p.parse_args()

    import numpy as np

    import ringdp

    ringdp.init()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    for _ in range(20):  # an engine that has worked, as in a training that stops to validate
        ringdp.allreduce(np.ones(1 << 18, np.float32))
    time.sleep(0.5)
    before, began = cpu_seconds(), time.perf_counter()
    time.sleep(options.seconds)
    after, taken = cpu_seconds(), time.perf_counter() - began
    share = {name: (after[name] - before.get(name, 0)) / taken for name in after}
    shares = comm.allgather(share)
    if comm.rank == 0:
        engine = [one.get(ENGINE) for one in shares]
        if None in engine:
            sys.exit(f"a rank has no thread {ENGINE}: {shares}")
        others = [sum(value for name, value in one.items() if name != ENGINE) for one in shares]
        result = {"ranks": comm.size, "engine": engine, "others": others, "seconds": taken}
        Path(options.out).write_text(json.dumps(result))
    ringdp.shutdown()


def cpu_seconds() -> dict[str, float]:
    """Of each thread of this process by its name; threads of one name together."""
    total: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        total[name] = total.get(name, 0) + int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


if __name__ == "__main__":
    main()
