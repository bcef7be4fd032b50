"""The jobs of each scenario, and how one is run: under mpirun on this host, or across hosts made for it."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import hosts as cluster_hosts
from driver.environ import environment, mpirun
from driver.limit import run_limited
from driver.phases import ROOT

HERE = Path(__file__).parent
LOGS = ROOT / "build" / "perf"
KIB, MIB = 1 << 10, 1 << 20
RATE = "1gbit"
MEMORY = ("plain", "ddp", "ringdp", "ringdp-bf16", "horovod")

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One start of mpirun. `options` go to the script; in a quick run those of `quick` replace them."""

    name: str
    script: str
    ranks: int
    options: dict[str, Any]
    quick: dict[str, Any] = field(default_factory=dict)
    hosts: int = 0  # 0: this host
    needs: str = ""  # a package without which there is nothing to measure
    limit: float = 240  # seconds

    def words(self, quick: bool, library: Path, out: Path) -> list[str]:
        chosen = {**self.options, **(self.quick if quick else {})}
        words = [sys.executable, str(HERE / self.script), "--out", str(out)]
        if self.script == "job_allreduce.py":
            words += ["--library", str(library)]
        for name, value in chosen.items():
            words += [f"--{name}"] if value is True else [f"--{name}", _text(value)]
        return words


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _allreduce(
    name: str, ranks: int, sizes: Sequence[int], entries: str, timing: str = "each", seconds: float = 0.8,
    rounds: int = 5, quick_sizes: Sequence[int] = (), hosts: int = 0,
) -> Job:  # fmt: skip
    """`sizes` in bytes of float32."""
    options = {"counts": [s // 4 for s in sizes], "entries": entries.split(), "timing": timing}
    options |= {"rounds": rounds, "seconds": seconds}
    quick: dict[str, Any] = {"rounds": 3, "seconds": seconds * 0.4}
    if quick_sizes:
        quick["counts"] = [s // 4 for s in quick_sizes]
    return Job(name, "job_allreduce.py", ranks, options, quick, hosts)


def _memory(name: str) -> Job:
    needs = "horovod" if name == "horovod" else ""
    return Job(f"memory {name}", "job_step.py", 2, {"entries": name, "memory": True}, needs=needs)


_TINY = [4, 16, 64, 256, 1 * KIB, 4 * KIB]
_WIDE = [64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB]
_LINK = "raw-link ringdp mpi ringdp-wire-bf16 ringdp-wire-fp16 ringdp:bfloat16"
_FLOORS = "floor-in-place floor-staged"
_TYPES = ("float32", "bfloat16", "float16")
_STEP = {"entries": "plain,ddp,ddp-bf16,ringdp,ringdp-bf16", "rounds": 5, "iterations": 8}
_ALONE = {"entries": "plain,ringdp", "rounds": 7, "iterations": 15}


def _link(hosts: int, per_host: int) -> Job:
    sizes = [16 * MIB, 32 * MIB, 64 * MIB]
    return _allreduce(
        f"link {hosts}x{per_host}", hosts * per_host, sizes, _LINK, seconds=0.1, rounds=3, quick_sizes=sizes[:1],
        hosts=hosts,
    )  # fmt: skip


SCENARIOS: dict[str, list[Job]] = {
    "small": [
        _allreduce(
            "small", 2, [*_TINY, 16 * KIB], "ringdp ringdp-torch mpi mpi-out gloo", "loop", quick_sizes=_TINY[::2]
        )
    ],
    "large": [
        _allreduce(
            "large", 2, _WIDE, f"ringdp ringdp-shared mpi mpi-out gloo {_FLOORS}", quick_sizes=_WIDE[:-1:2]
        )
    ],
    "types": [
        _allreduce(
            "types", 2, [16 * MIB, 64 * MIB, 256 * MIB],
            " ".join(f"{form}:{dtype}" for form in ("ringdp", "ringdp-shared") for dtype in _TYPES),
            seconds=0.6, quick_sizes=[16 * MIB, 64 * MIB],
        )  # fmt: skip
    ],
    "four": [
        _allreduce("four small", 4, _TINY[::2], "ringdp ringdp-shared mpi mpi-out", "loop", quick_sizes=_TINY[::5]),
        _allreduce(
            "four", 4, [16 * KIB, *_WIDE[1:-1:2], 16 * MIB, 64 * MIB], f"ringdp ringdp-shared mpi mpi-out {_FLOORS}",
            quick_sizes=[256 * KIB, 16 * MIB],
        ),
    ],
    "link": [
        _link(2, 1), _link(4, 1), _link(2, 2),
        _allreduce("link small 2x1", 2, [4, 1 * KIB, 16 * KIB], "ringdp mpi mpi-out", "loop", 0.4, hosts=2),
    ],
    "step": [
        Job("step", "job_step.py", 2, _STEP, {"rounds": 3, "iterations": 5}),
        Job("step alone", "job_step.py", 1, _ALONE, {"rounds": 5, "iterations": 8}),
        # Its thread never sleeps and would slow the others down: it gets jobs of its own, one after the other.
        Job("step horovod", "job_step.py", 2, {**_STEP, "entries": "plain,horovod"}, {"rounds": 3, "iterations": 5},
            needs="horovod"),
        *map(_memory, MEMORY),
    ],
    "idle": [Job("idle", "job_idle.py", 2, {"seconds": 10}, {"seconds": 4})],
}  # fmt: skip


def run(job: Job, quick: bool, library: Path) -> Result:
    """What the job measured, with "incomplete" if it ended early; or why not, as "failed" or "skipped"."""
    LOGS.mkdir(parents=True, exist_ok=True)
    out = LOGS / f"{job.name.replace(' ', '-')}.json"
    log = out.with_suffix(".log")
    out.unlink(missing_ok=True)
    if job.needs and importlib.util.find_spec(job.needs) is None:
        return {"skipped": f"{job.needs} is not installed"}
    words = job.words(quick, library, out)
    with ExitStack() as stack:
        if job.hosts:
            reason = cluster_hosts.missing()
            if reason:
                return {"skipped": reason}
            hosts = stack.enter_context(cluster_hosts.Hosts(job.hosts, RATE))
            command, env = hosts.job(words, job.ranks // job.hosts)
        else:
            command, env = [mpirun(), "-n", str(job.ranks), *words], environment()
        outcome = run_limited(command, env, ROOT, log, job.limit)
    result: Result = json.loads(out.read_text()) if out.exists() else {}
    if outcome.code != 0 or not result:
        code = (
            f"exit code {outcome.code}"
            if outcome.code is not None
            else f"ended at its limit of {job.limit:.0f} s"
        )
        result["failed" if not result else "incomplete"] = f"{code}; see {log.relative_to(ROOT)}"
    return {**result, "seconds": round(outcome.seconds, 1), "quick": quick}
