"""Whether a GPU computes while ringdp exchanges: both alone, and at once, by events."""

from __future__ import annotations

from gpu_check.mpi import run_job
from gpu_check.results import Results
from gpu_check.suite import MOST_GPUS, gpus, need_gpus

MIB = 2**20
COMPUTED = (
    16 * MIB
)  # bytes: launching it is not to take longer than it does, and large GPUs keep it in their cache
TRIED = 50  # launches


def run(results: Results) -> None:
    ways = [(2, "host", "through the host"), (min(gpus(), MOST_GPUS), "nccl", "by NCCL")]
    for ranks, way, name in ways:
        what = "(computing + exchange - at once) / the shorter of the two; 1: hidden, 0: one after the other"
        with results.check(f"overlap {name}", what) as result:
            if way == "nccl":
                need_gpus(2)
            nbytes, computed, tried = (4 * MIB, MIB // 4, 4) if results.quick else (64 * MIB, COMPUTED, TRIED)
            limit = (0.5 if way == "host" else 0.9) * results.seconds_left()
            found = run_job("overlap_job", ranks, way, limit, *map(str, (nbytes, computed, tried)))
            times = {key: found[key] for key in ("computing", "exchange", "at once")}
            shorter = min(times["computing"], times["exchange"])
            share = (times["computing"] + times["exchange"] - times["at once"]) / shorter
            result.figures["overlap"] = (share, "")
            result.figures.update({name: (time, "ms") for name, time in times.items()})
            result.figures["launches"] = (found["launches"], "")
            result.what += f"; {ranks} ranks, {nbytes // MIB} MiB; medians of {found['repetitions']}"
