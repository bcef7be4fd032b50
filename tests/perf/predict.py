"""Holds the model of docs/scale.md against this machine: predicted beside measured times of the ring.

    python tests/perf/predict.py host                                  2 and 4 ranks of this host
    python tests/perf/predict.py hosts --hosts 8 --rate 100mbit        8 hosts of one rank each; needs root

Everything the model knows is measured on two ranks (of this host, or of two hosts): the latency of a small message and
the speed of additions; then two sizes fix what an operation costs besides (4 bytes) and the bandwidth (the largest).
All other lines, and all of those with more than two ranks, are predictions. The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from driver.environ import environment, mpirun

from ringdp.plan.cluster import Cluster, Link
from ringdp.plan.exchange import allreduce

JOB = Path(__file__).with_name("job_times.py")
EAGER = {"host": 4096.0, "hosts": 65536.0}  # Open MPI's limits over shared memory and over TCP
SIZES = {
    "host": (4, 65536, 1 << 20, 4 << 20, 16 << 20, 64 << 20),
    "hosts": (4, 65536, 1 << 20, 4 << 20, 16 << 20),
}
LIMIT = 300  # seconds of one job


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("where", choices=("host", "hosts"))
    p.add_argument("--hosts", type=int, default=8)
    p.add_argument("--rate", default="100mbit", help="of every host's link, as tc writes it")
    p.add_argument("--ranks", default="2,4", help="of this host, the first two for calibration")
    p.add_argument("--seconds", type=float, default=2.0, help="of measuring one size")
    p.add_argument("--json", metavar="FILE", help="writes everything there as well")
    options = p.parse_args()
    if options.where == "host":
        runs = [on_this_host(int(n), options) for n in options.ranks.split(",")]
    else:
        runs = [over_links(n, options) for n in (2, options.hosts)]
    cluster = calibrate(runs[0], options.where)
    rows = [row for run in runs for row in compare(cluster, run)]
    print("\n".join(table(cluster, rows)))
    if options.json:
        Path(options.json).write_text(json.dumps({"cluster": str(cluster), "rows": rows}, indent=1))
    return 0


def on_this_host(ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    words = [mpirun(), "-n", str(ranks), sys.executable, str(JOB)]
    return run(words, environment(), options)


def over_links(count: int, options: argparse.Namespace) -> dict[str, Any]:
    from cluster.hosts import Hosts, missing

    if reason := missing():
        raise SystemExit(f"predict.py: {reason}")
    with Hosts(count, options.rate) as hosts:
        words, env = hosts.job([sys.executable, str(JOB)])
        return run(words, env, options)


def run(words: list[str], env: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ringdp-predict-") as folder:
        out = Path(folder) / "times.json"
        sizes = ",".join(map(str, SIZES[options.where]))
        words = [*words, "--bytes", sizes, "--seconds", str(options.seconds), "--out", str(out)]
        subprocess.run(words, env=env, check=True, timeout=LIMIT)
        return dict(json.loads(out.read_text()))


# --- the model ------------------------------------------------------------------------------------------------------


def calibrate(two: dict[str, Any], where: str) -> Cluster:
    """The description of this machine from a run on two ranks."""
    host = where == "host"
    link = Link(two["latency"], 1e9)
    cluster = Cluster(
        name="this host" if host else "hosts over links",
        ranks_per_host=64 if host else 1,
        inside=link,
        between=link,
        control=two["latency"],
        arithmetic=two["arithmetic"],
        eager=EAGER[where],
        cores=len(os.sched_getaffinity(0)) if host else 0,
        inside_by_rank=host,
    )
    seconds = {int(n): t for n, t in two["seconds"].items()}
    for _ in range(3):  # an operation's own time hardly depends on the bandwidth, nor that on it
        small = predict(replace(cluster, operation=0.0), 2, 4)
        cluster = replace(cluster, operation=max(0.0, seconds[4] - small))
        cluster = fit(cluster, with_byte, max(seconds), seconds, 1e-13, 1e-5)
    return cluster


def fit(
    cluster: Cluster,
    changed: Callable[[Cluster, float], Cluster],
    nbytes: int,
    seconds: dict[int, float],
    low: float,
    high: float,
) -> Cluster:
    """The cluster, changed by the value at which two ranks take as long as measured: the time grows with the value."""
    for _ in range(40):
        middle = (low * high) ** 0.5
        late = predict(changed(cluster, middle), 2, nbytes) > seconds[nbytes]
        low, high = (low, middle) if late else (middle, high)
    return changed(cluster, low)


def with_byte(cluster: Cluster, seconds_a_byte: float) -> Cluster:
    bandwidth = 1 / seconds_a_byte
    return replace(
        cluster,
        inside=replace(cluster.inside, bandwidth=bandwidth),
        between=replace(cluster.between, bandwidth=bandwidth),
    )


def predict(cluster: Cluster, ranks: int, nbytes: int) -> float:
    return allreduce(cluster, ranks, max(1, nbytes // 4), 4, "ring").seconds


def compare(cluster: Cluster, run: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for nbytes, measured in run["seconds"].items():
        predicted = predict(cluster, run["ranks"], int(nbytes))
        fitted = run["ranks"] == 2 and int(nbytes) in (4, max(map(int, run["seconds"])))
        rows.append(
            {
                "ranks": run["ranks"],
                "bytes": int(nbytes),
                "predicted": predicted,
                "measured": measured,
                "fitted": fitted,
            }
        )
    return rows


def table(cluster: Cluster, rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        str(cluster),
        f"{'ranks':>5} {'bytes':>10} {'predicted ms':>13} {'measured ms':>12} {'ratio':>6}",
    ]
    for r in rows:
        lines.append(
            f"{r['ranks']:5} {r['bytes']:10} {r['predicted'] * 1e3:13.3f} {r['measured'] * 1e3:12.3f} "
            f"{r['predicted'] / r['measured']:6.2f}{'  calibrated by this' if r['fitted'] else ''}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
