"""A job under mpirun: training steps of several contestants, who take turns; or the peak memory of one.

The memory is Pss, the proportional set size: pages that ranks share count in parts. It is looked at every ten
milliseconds, by a thread, while one contestant alone trains; that of plain training is without MPI.
"""

import argparse
import importlib.util
import json
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MEMORY_STEPS = 12
NAMES = ("plain", "ddp", "ddp-bf16", "ringdp", "ringdp-bf16", "ringdp-fp16", "horovod")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--entries", required=True, help=f"with commas: {', '.join(NAMES)}")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--iterations", type=int, default=10, help="steps of a round")
    p.add_argument("--memory", action="store_true", help="of the one contestant that --entries names")
    p.add_argument("--out", required=True)
    options = p.parse_args()
    import torch

    torch.set_num_threads(1)
    if options.memory and options.entries == "plain":  # a script that knows of no MPI at all
        write(options.out, {"peak": [train_and_watch(lambda: make("plain", 0, 1))]})
        return

    import ringdp

    ringdp.init()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    try:
        result = (memory if options.memory else measure_steps)(options, comm)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
        raise
    if comm.rank == 0:
        write(options.out, result)
    ringdp.shutdown()


def write(out: str, result: dict[str, Any]) -> None:
    Path(out).write_text(json.dumps(result))


# --- contestants ---


def refusal(name: str) -> str | None:
    """Why it cannot take part; the same on all ranks."""
    if name == "horovod" and importlib.util.find_spec("horovod") is None:
        return "it is not installed"
    if name.startswith("ringdp-"):
        from ringdp.torch import Compression

        kind = name.partition("-")[2]
        return None if hasattr(Compression, kind) else f"this ringdp.torch has no Compression.{kind}"
    return None


def make(name: str, rank: int, ranks: int) -> Any:
    from perf import workload

    kind, _, form = name.partition("-")
    if kind == "plain":
        return workload.Plain(rank, ranks)
    if kind == "ddp":
        return workload.DDP(rank, ranks, f"{form}_compress_hook" if form else "")
    module = importlib.import_module("ringdp.torch" if kind == "ringdp" else "horovod.torch")
    module.init()
    return workload.Wrapped(rank, ranks, module, form or "none")


def start_gloo(comm: Any) -> Any:
    from ringdp.cli import contestants

    gloo = contestants.peer("gloo", comm)
    if isinstance(gloo, str):
        raise RuntimeError(f"gloo: {gloo}")
    return gloo


# --- time ---


def measure_steps(options: argparse.Namespace, comm: Any) -> dict[str, Any]:
    from ringdp.cli import measure

    left_out = {name: why for name in options.entries.split(",") if (why := refusal(name))}
    names = [name for name in options.entries.split(",") if name not in left_out]
    gloo = start_gloo(comm) if any(name.startswith("ddp") for name in names) else None
    trainers = [make(name, comm.rank, comm.size) for name in names]
    steps = [trainer.step for trainer in trainers]
    # Bucket orders settle in the first steps: those of the first round are not counted.
    measure.take_turns(steps, comm, 0, 4)
    rounds = [
        measure.slowest(measure.take_turns(steps, comm, 0, options.iterations), comm)
        for _ in range(options.rounds)
    ]
    points = [
        {"entry": name, "us": list(us), "wrong": comm.allreduce(trainer.wrong_elements())}
        for name, trainer, us in zip(names, trainers, zip(*rounds, strict=True), strict=True)
    ]
    if gloo:
        gloo.close()
    return {
        "ranks": comm.size,
        "points": points,
        "left_out": left_out,
        "counters": counters(trainers, names, comm),
    }


def counters(trainers: list[Any], names: list[str], comm: Any) -> dict[str, float] | None:
    """What the engine counted in a step of ringdp, the mean of ten more; None where ringdp takes no part."""
    from ringdp import world

    read = world.current().engine.counters
    if "ringdp" not in names:
        return None
    before = read()
    for _ in range(10):
        trainers[names.index("ringdp")].step()
    comm.Barrier()
    return {key: (value - before[key]) / 10 for key, value in read().items()}


# --- memory ---


def memory(options: argparse.Namespace, comm: Any) -> dict[str, Any]:
    name = options.entries
    why = refusal(name)
    if why:
        return {"left_out": {name: why}}
    gloo = start_gloo(comm) if name.startswith("ddp") else None
    peak = train_and_watch(lambda: make(name, comm.rank, comm.size))
    if gloo:
        gloo.close()
    return {"peak": comm.allgather(peak)}


def train_and_watch(trainer: Callable[[], Any]) -> int:
    """The highest Pss of this process, in bytes, from before the model is made until some steps have been taken."""
    done = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, pss())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        one = trainer()
        for _ in range(MEMORY_STEPS):
            one.step()
    finally:
        done.set()
        watcher.join()
    return peak


def pss() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("smaps_rollup has no line Pss")


if __name__ == "__main__":
    main()
