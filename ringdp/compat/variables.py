"""The table of `HOROVOD_*` variables: which stand for one of ours, and why the others change nothing."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

# Honoured where ours is unset.
HONOURED = {
    "HOROVOD_FUSION_THRESHOLD": "RINGDP_BUCKET_BYTES",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "RINGDP_REPORT_AFTER",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "RINGDP_TIMEOUT",
    "HOROVOD_TIMELINE": "RINGDP_TIMELINE",
}

_AUTOTUNE = "nothing is tuned while a job runs: the algorithm is chosen from the profile (RINGDP_PROFILE)"
_BUILD = "it is read when Horovod is built"
_CYCLE = "there are no cycles: a bucket is exchanged as soon as it is full"
_GPU = "tensors are exchanged in host memory"
_LAUNCHER = "the launcher of the MPI job says it"
_LOG = "ringdp writes no log"
_STALL = "who is waited for is always said, after RINGDP_REPORT_AFTER seconds"
_TRANSPORT = "MPI and shared memory carry everything"
# By the variable's name or, ending in "*", by how it begins.
IGNORED = {
    "HOROVOD_ADASUM_MPI_CHUNK_SIZE": "Adasum is computed over whole tensors",
    "HOROVOD_AUTOTUNE*": _AUTOTUNE,
    "HOROVOD_BATCH_D2D_MEMCOPIES": _GPU,
    "HOROVOD_CACHE_CAPACITY": "plans are kept as long as the optimizer lives",
    "HOROVOD_CCL*": _TRANSPORT,
    "HOROVOD_CONTROLLER": _TRANSPORT,
    "HOROVOD_CPU_OPERATIONS": _TRANSPORT,
    "HOROVOD_CROSS_*": _LAUNCHER,
    "HOROVOD_CYCLE_TIME": _CYCLE,
    "HOROVOD_DISABLE_GROUP_FUSION": "the operations of a group complete together either way",
    "HOROVOD_DISABLE_NVTX_RANGES": _GPU,
    "HOROVOD_DYNAMIC_PROCESS_SETS": "process sets can always be added and removed",
    "HOROVOD_ELASTIC*": "a lost rank ends the job; see docs/elastic.md",
    "HOROVOD_ENABLE_ASYNC_COMPLETION": _GPU,
    "HOROVOD_ENABLE_XLA_OPS": "there is nothing for TensorFlow",
    "HOROVOD_GLOO*": _TRANSPORT,
    "HOROVOD_GPU_*": _BUILD,
    "HOROVOD_HIERARCHICAL_*": "the cheapest algorithm is chosen; RINGDP_ALGORITHM forces one",
    "HOROVOD_HOSTNAME": _LAUNCHER,
    "HOROVOD_LOCAL_*": _LAUNCHER,
    "HOROVOD_LOG_*": _LOG,
    "HOROVOD_MPI_THREADS_DISABLE": "MPI is always initialised for calls from several threads",
    "HOROVOD_NUM_NCCL_STREAMS": _GPU,
    "HOROVOD_RANK": _LAUNCHER,
    "HOROVOD_SECRET_KEY": _LAUNCHER,
    "HOROVOD_SIZE": _LAUNCHER,
    "HOROVOD_STALL_CHECK_DISABLE": _STALL,
    "HOROVOD_START_TIMEOUT": "it belongs to horovodrun",
    "HOROVOD_THREAD_AFFINITY": "the launcher binds ranks to cores",
    "HOROVOD_TIMELINE_MARK_CYCLES": _CYCLE,
    "HOROVOD_TORUS_ALLREDUCE": "the cheapest algorithm is chosen; RINGDP_ALGORITHM forces one",
    "HOROVOD_WITHOUT_*": _BUILD,
    "HOROVOD_WITH_*": _BUILD,
}


def honour(environment: MutableMapping[str, str]) -> list[str]:
    """Set our variables from Horovod's, and say in a line each which of Horovod's change nothing.

    Their values are not repeated: HOROVOD_SECRET_KEY is one of them.

    Called by `init()` before the core reads its options. A variable of ours that is set (and not empty) wins.
    """
    for theirs, ours in HONOURED.items():
        if _means_something(theirs, environment) and not environment.get(ours):
            environment[ours] = environment[theirs]
    return [
        f"{name} is ignored: {_why(name)}"
        for name in sorted(environment)
        if name.startswith("HOROVOD_") and not _means_something(name, environment)
    ]


def _means_something(theirs: str, environment: Mapping[str, str]) -> bool:
    """Whether the variable can be honoured. 0 is Horovod's "never": neither waits without an end nor exchanges of one
    tensor at a time are to be had here. DYNAMIC is its timeline that starts later, which ours may always."""
    value = environment.get(theirs, "")
    if theirs == "HOROVOD_TIMELINE":
        return value not in ("", "DYNAMIC")
    try:
        return theirs in HONOURED and float(value) > 0
    except ValueError:
        return False


def _why(name: str) -> str:
    if name == "HOROVOD_TIMELINE":
        return "start_timeline() may be called without it"
    if name in HONOURED:
        return f"it is no number above 0; {HONOURED[name]} holds"
    for pattern, reason in IGNORED.items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return reason
    return "ringdp does not know it"
