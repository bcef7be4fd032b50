"""The tables that `python -m ringdp.plan` prints, as text and as plain data for --json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from ringdp.plan import summit
from ringdp.plan.cluster import Cluster
from ringdp.plan.exchange import allreduce, chosen, fastest
from ringdp.plan.step import Negotiation, Step, negotiated, planned
from ringdp.plan.workload import Workload

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 27_600, 32768, 65536, 100_000)
NOT_MODELLED = (
    "not modelled: other traffic, congestion between switches, lost packets, reading of samples, interference of the "
    "exchange with compute, checkpoints; the optimizer's own time (a part of neither step)"
)


def whole_hosts(cluster: Cluster, ranks: int) -> int:
    """The nearest number of ranks that fills its hosts, or stays within one."""
    if ranks <= cluster.ranks_per_host:
        return ranks
    return max(1, round(ranks / cluster.ranks_per_host)) * cluster.ranks_per_host


def steps(
    cluster: Cluster, workload: Workload, ranks: Iterable[int], horovod: Negotiation | None
) -> list[dict[str, Any]]:
    """A row for each number of ranks, and a second one for Horovod where its settings are given."""
    rows = []
    for n in dict.fromkeys(whole_hosts(cluster, r) for r in ranks):
        rows.append(_row("ringdp", planned(cluster, workload, n)))
        if horovod is not None:
            rows.append(_row("horovod", negotiated(cluster, workload, n, horovod)))
    return rows


def _row(who: str, step: Step) -> dict[str, Any]:
    row = {"library": who, **asdict(step), **asdict(step.last)}
    del row["last"]
    row["bucket"] = row.pop("seconds")
    return {**row, "efficiency": step.efficiency, "of_the_library": step.of_the_library}


def buckets(
    cluster: Cluster, ranks: Iterable[int], sizes: Iterable[int], element_bytes: int
) -> list[dict[str, Any]]:
    """A row for each number of ranks and size of a bucket: what the core chooses there, and what would be fastest."""
    rows = []
    for n in dict.fromkeys(whole_hosts(cluster, r) for r in ranks if r > 1):
        for size in sizes:
            count = max(1, size // element_bytes)
            name = chosen(cluster, n, count, element_bytes)
            ours, best = (
                allreduce(cluster, n, count, element_bytes, name),
                fastest(cluster, n, count, element_bytes),
            )
            rows.append({"ranks": n, "bytes": size, **asdict(ours), "fastest": asdict(best)})
    return rows


def bucket_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'ranks':>7} {'bytes':>10} {'chosen':18} {'how':12} {'ms':>10} "
        f"{'fastest':18} {'how':12} {'ms':>10} {'ratio':>6}"
    ]
    for row in rows:
        best = row["fastest"]
        lines.append(
            f"{row['ranks']:7} {row['bytes']:10} {row['algorithm']:18} {row['how']:12} {row['seconds'] * 1e3:10.4f} "
            f"{best['algorithm']:18} {best['how']:12} {best['seconds'] * 1e3:10.4f} "
            f"{row['seconds'] / best['seconds']:6.2f}"
        )
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'ranks':>7} {'library':8} {'algorithm':18} {'how':12} {'bucket':>9} {'compute':>9} {'exchange':>9} "
        f"{'control':>8} {'efficiency':>10} {'of library':>10}",
        f"{'':7} {'':8} {'':18} {'':12} {'ms':>9} {'ms':>9} {'ms':>9} {'ms':>8}",
    ]
    for row in rows:
        times = (f"{row[key] * 1e3:9.3f}" for key in ("bucket", "compute", "exchange"))
        lines.append(
            f"{row['ranks']:7} {row['library']:8} {row['algorithm']:18} {row['how']:12} {' '.join(times)} "
            f"{row['control'] * 1e3:8.3f} {row['efficiency']:10.4f} {row['of_the_library']:10.4f}"
        )
    return "\n".join(lines)


def assumptions(cluster: Cluster, workload: Workload) -> dict[str, Any]:
    """Every number that a result rests on."""
    return {
        "cluster": asdict(cluster),
        "workload": {
            "name": workload.name,
            "step of one rank": workload.compute,
            "gradients": len(workload.gradients),
            "bytes": workload.bytes,
            "buckets": len(workload.buckets()),
        },
        "not modelled": NOT_MODELLED,
    }


def constants() -> str:
    """The frozen constants of the published run, each with its kind and source."""
    lines = [
        f"{name:24} {c.value:12.6g} {c.unit:9} {c.kind:10} {c.source}" for name, c in summit.CONSTANTS.items()
    ]
    return "\n".join(lines)


def published() -> dict[str, Any]:
    """Horovod and ringdp at 27,600 under the frozen constants, and the same with what is not published halved and
    doubled, one at a time."""
    cluster, workload, horovod = summit.CLUSTER, summit.WORKLOAD, summit.HOROVOD
    variants: list[tuple[str, Cluster, Workload, Negotiation]] = [
        ("frozen", cluster, workload, horovod),
        ("no spread", replace(cluster, spread=0.0), workload, horovod),
        (
            "no spread, half the step",
            replace(cluster, spread=0.0),
            _other(workload, compute=workload.compute / 2),
            horovod,
        ),
        ("half the spread", replace(cluster, spread=cluster.spread / 2), workload, horovod),
        ("half the step", cluster, _other(workload, compute=workload.compute / 2), horovod),
        ("twice the step", cluster, _other(workload, compute=workload.compute * 2), horovod),
        ("4 bytes a gradient", cluster, _other(workload, element_bytes=4), horovod),
        ("latencies twice", _latencies(cluster, 2), workload, horovod),
        ("latencies half", _latencies(cluster, 0.5), workload, horovod),
        ("cycle of 1 ms", cluster, workload, replace(horovod, cycle=1e-3)),
        ("groups twice as large", cluster, workload, replace(horovod, fusion_bytes=2 * horovod.fusion_bytes)),
    ]
    return {name: _both(c, w, h) for name, c, w, h in variants}


def _both(cluster: Cluster, workload: Workload, horovod: Negotiation) -> dict[str, Any]:
    theirs = negotiated(cluster, workload, summit.RANKS, horovod)
    ours = planned(cluster, workload, summit.RANKS)
    return {
        "horovod": theirs.efficiency,
        "ringdp": ours.efficiency,
        "slowest rank alone": ours.alone / ours.compute,
        "horovod, of library": theirs.of_the_library,
        "ringdp, of library": ours.of_the_library,
    }


def _other(workload: Workload, compute: float | None = None, element_bytes: int | None = None) -> Workload:
    return Workload.even(
        workload.name,
        compute or workload.compute,
        sum(count for count, _ in workload.gradients),
        element_bytes or workload.element_bytes,
        len(workload.gradients),
    )


def _latencies(cluster: Cluster, factor: float) -> Cluster:
    def slower(link: Any) -> Any:
        return replace(link, latency=link.latency * factor)

    return replace(
        cluster,
        inside=slower(cluster.inside),
        between=slower(cluster.between),
        control=cluster.control * factor,
    )


def published_table(results: dict[str, Any]) -> str:
    widths = {column: max(len(column) + 2, 9) for column in next(iter(results.values()))}
    lines = [f"{'at 27,600 ranks':34}" + "".join(f"{c:>{width}}" for c, width in widths.items())]
    for name, row in results.items():
        lines.append(f"{name:34}" + "".join(f"{row[c]:{width}.4f}" for c, width in widths.items()))
    return "\n".join(lines)
