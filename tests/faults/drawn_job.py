"""What a rank of a drawn job does: `python drawn_job.py SEED [RANKS …]` under a launcher.

It writes what it sees to `said-RANK` in the working directory, a line of JSON each. Whatever is not as it must be, a
sum or an error, it writes as "wrong", and ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

import numpy as np
from drawn import (
    SAMPLES,
    Draw,
    Fault,
    Operation,
    digest,
    draw,
    input_of,
    operations,
    order,
    result_of,
    samples_of,
)

import ringdp
from ringdp import elastic

ATTEMPT = int(os.environ.get("RINGDP_RESTART", "0"))


class Wrong(BaseException):
    """What no fault may bring about."""


def say(what: str, **more: Any) -> None:
    line = json.dumps({"what": what, "time": time.time(), "attempt": ATTEMPT, **more})
    with open(f"said-{ringdp.rank()}", "a") as file:
        print(line, file=file, flush=True)


def submit(op: Operation, data: Any) -> Any:
    """A handle."""
    if op.kind == "allreduce_":
        shared = ringdp.empty(data.shape, data.dtype)
        shared[...] = data
        return ringdp.allreduce_async_(shared, op=ringdp.Sum, name=op.name)
    match op.kind:
        case "allreduce":
            return ringdp.allreduce_async(data, op=ringdp.Sum, name=op.name)
        case "max":
            return ringdp.allreduce_async(data, op=ringdp.Max, name=op.name)
        case "allgather":
            return ringdp.allgather_async(data, name=op.name)
        case "broadcast":
            return ringdp.broadcast_async(data, op.root, name=op.name)
        case "alltoall":
            return ringdp.alltoall_async(data, name=op.name)
        case "reducescatter":
            return ringdp.reducescatter_async(data, op=ringdp.Sum, name=op.name)
    raise AssertionError(op.kind)


def carry_out(op: Operation, data: Any) -> Any:
    """And wait for it."""
    if op.kind == "barrier":
        return ringdp.barrier()
    found = ringdp.synchronize(submit(op, data))
    return found[0] if isinstance(found, tuple) else found


def check(op: Operation, found: Any, must: Any) -> None:
    if getattr(found, "dtype", None) != getattr(must, "dtype", None) or not np.array_equal(found, must):
        raise Wrong(f"a wrong result of {op} on rank {ringdp.rank()}: {found}, not {must}")


def differ(fault: Fault, op: Operation) -> None:
    """One rank means something else: all hear of it, and nothing is touched."""
    rank, size = ringdp.rank(), ringdp.size()
    data = np.full(50, rank + 1, np.float32)
    before = data.copy()
    name = f"differs.{op.name}"
    try:
        if rank != fault.rank:
            ringdp.allreduce_(data, op=ringdp.Sum, name=name)
        elif fault.mismatch == "shape":
            ringdp.allreduce_(data[:49], op=ringdp.Sum, name=name)
        elif fault.mismatch == "dtype":
            ringdp.allreduce(data.astype(np.float64), op=ringdp.Sum, name=name)
        elif fault.mismatch == "op":
            ringdp.allreduce_(data, op=ringdp.Max, name=name)
        else:
            ringdp.broadcast_(data, 0, name=name)
    except ringdp.MismatchError as error:
        if f"rank {fault.rank}" not in str(error):
            raise Wrong(f"nobody says that rank {fault.rank} differs: {error}") from error
        if not np.array_equal(data, before):
            raise Wrong("an operation that has failed has touched its tensor") from error
        say("mismatch", step=fault.step)
    else:
        raise Wrong(f"rank {rank} has heard of no mismatch")
    total = ringdp.allreduce(data, op=ringdp.Sum, name=name)
    if not np.array_equal(total, np.full(50, size * (size + 1) / 2, np.float32)):
        raise Wrong(f"a wrong sum after a mismatch: {total}")


def in_python(fault: Fault) -> None:
    """What the core does not do to itself."""
    if ringdp.rank() != fault.rank:
        return
    say("fault")
    match fault.kind:
        case "killed in Python":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exited in Python":
            os._exit(7)
        case "an exception":
            raise ValueError("the data is broken")
        case "leaves early":
            sys.exit(0)
        case "asleep in Python":
            time.sleep(100)


def take_step(job: Draw, fault: Fault, step: int, before: int) -> int:
    """The digest after it."""
    rank = ringdp.rank()
    ops = operations(job.seed, job.ranks, step)
    if step == fault.step:
        in_python(fault)
        if fault.kind == "a mismatch":
            differ(fault, ops[-1])
    must = [result_of(op, job.ranks, rank) for op in ops]
    data = [input_of(op, job.ranks, rank) for op in ops]
    numbers = order(job.seed, rank, step, len(ops))
    handles = {n: submit(ops[n], data[n]) for n in numbers if ops[n].kind != "barrier"}
    found: list[Any] = []
    for number, op in enumerate(ops):
        if number in handles:
            one = ringdp.synchronize(handles[number])
            found.append(one[0] if isinstance(one, tuple) else one)
        else:
            found.append(carry_out(op, data[number]))
        check(op, found[-1], must[number])
    say("step", step=step, operations=len(ops))
    return digest(before, found)


def train(state: Any, job: Draw, fault: Fault) -> None:
    """All steps from where the state stands."""
    say("from", step=state.step)
    until_asked = fault.kind == "asked to stop"
    while state.step < job.steps or until_asked:
        if until_asked and ringdp.should_stop():
            say("stopped", step=state.step, digest=state.digest)
            ringdp.stop()
        state.digest = take_step(job, fault, state.step, state.digest)
        taken = ringdp.allgather(samples_of(job, ringdp.rank(), state.step), name="samples")
        state.samples[taken % len(state.samples)] += 1
        state.step += 1
        if job.restarts and state.step % job.commit_every == 0:
            state.commit()


class Plain:
    """A state that is not kept."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def main() -> None:
    job = draw(int(sys.argv[1]), *([tuple(map(int, sys.argv[2:]))] if sys.argv[2:] else []))
    fault = job.fault_of(ATTEMPT)
    os.environ["RINGDP_INJECT"] = fault.inject
    ringdp.init()
    del os.environ["RINGDP_INJECT"]  # not again after a reset
    say("begin", pid=os.getpid())
    # What the ranks have alike is rank 0's after a sync: a digest of each rank's own results is not.
    values = {"step": 0, "digest": 0, "samples": np.zeros(job.steps * job.ranks * SAMPLES, np.int64)}
    try:
        state: Any
        if job.restarts:
            state = OfEachRank(**values)
            elastic.run_fn(train, elastic.reset)(state, job, fault)
        else:
            state = Plain(**values)
            train(state, job, fault)
        if not (state.samples == 1).all():
            raise Wrong(f"samples were lost or taken twice: {np.flatnonzero(state.samples != 1)}")
        say("end", digest=state.digest)
    except Wrong as error:
        say("wrong", text=str(error))
        raise
    except BaseException as error:
        if ringdp.is_initialized():
            say("error", type=type(error).__name__, text=str(error))
        raise


class OfEachRank(elastic.ObjectState):
    """Its digest is each rank's own: all of them are in the state."""

    def __init__(self, digest: int, **values: Any) -> None:
        super().__init__(ringdp.broadcast_object, ringdp.rank, all_digests=[digest] * ringdp.size(), **values)

    @property
    def digest(self) -> int:
        return int(self.all_digests[ringdp.rank()])

    @digest.setter
    def digest(self, value: int) -> None:
        self.all_digests = ringdp.allgather(np.array([value]), name="digests").tolist()


main()
