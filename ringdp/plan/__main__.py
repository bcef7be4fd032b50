"""`python -m ringdp.plan`: a table of steps over numbers of ranks, on paper."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ringdp.errors import UsageError
from ringdp.plan import report, summit
from ringdp.plan.cluster import Cluster
from ringdp.plan.workload import Workload

_EXAMPLES = """examples:
  python -m ringdp.plan summit                    Horovod's published run and ringdp under the same constants
  python -m ringdp.plan step --cluster my.toml --parameters 25.6e6 --step-time 0.3
  python -m ringdp.plan step --cluster my.toml --ranks 64,1024,100000 --json
  python -m ringdp.plan bucket --cluster my.toml --ranks 64,1024 --bytes 4,65536,26214400

my.toml (latency in seconds, bandwidth in bytes a second each way; more keys: ringdp/plan/cluster.py):
  ranks_per_host = 4
  control = 5e-6
  spread = 0.01
  inside = { latency = 1e-6, bandwidth = 10e9 }
  between = { latency = 5e-6, bandwidth = 12e9 }"""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    try:
        return {"summit": _summit, "step": _step, "bucket": _bucket}[args.what](args)
    except UsageError as error:
        print(f"ringdp.plan: {error}", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ringdp.plan",
        description=__doc__.split(": ", 1)[1],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        choices=("summit", "step", "bucket"),
        help="the published run; a step, or buckets, on --cluster",
    )
    parser.add_argument("--cluster", metavar="FILE", help="a TOML file (step)")
    parser.add_argument("--parameters", type=float, default=25.6e6, help="of the model (25.6e6, ResNet-50)")
    parser.add_argument("--tensors", type=int, default=161, help="in which they lie, equal (161)")
    parser.add_argument(
        "--step-time", type=float, default=0.3, metavar="SECONDS", help="of one rank alone (0.3)"
    )
    parser.add_argument("--element-bytes", type=int, choices=(2, 4), default=4, help="on the wire (4)")
    parser.add_argument("--ranks", default="", metavar="N,N,...", help="1 to 100,000 by default")
    parser.add_argument("--bytes", default="4,65536,1048576,26214400", metavar="B,B,...", help="of buckets")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")
    return parser.parse_args(arguments)


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(n) for n in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: numbers with commas between, such as 64,1024") from None
    if min(numbers) < 1:
        raise UsageError(f"{option} {text}: at least 1")
    return numbers


def _ranks(args: argparse.Namespace) -> Sequence[int]:
    return _numbers("--ranks", args.ranks) if args.ranks else report.RANKS


def _cluster(args: argparse.Namespace) -> Cluster:
    if not args.cluster:
        raise UsageError(f"{args.what} needs --cluster FILE")
    return Cluster.from_toml(args.cluster)


def _summit(args: argparse.Namespace) -> int:
    rows = report.steps(summit.CLUSTER, summit.WORKLOAD, _ranks(args), summit.HOROVOD)
    results = report.published()
    if args.json:
        kinds = {name: vars(c) for name, c in summit.CONSTANTS.items()}
        print(json.dumps({"constants": kinds, "steps": rows, "published": results}, indent=1))
        return 0
    print(report.table(rows))
    print(f"\n{report.published_table(results)}")
    print(f"\npublished for Horovod: {summit.EFFICIENCY} ± {summit.TOLERANCE}\n\nconstants, frozen:")
    print(f"{report.constants()}\n{report.NOT_MODELLED}")
    return 0


def _step(args: argparse.Namespace) -> int:
    cluster = _cluster(args)
    workload = Workload.even("model", args.step_time, int(args.parameters), args.element_bytes, args.tensors)
    rows = report.steps(cluster, workload, _ranks(args), None)
    assumed = report.assumptions(cluster, workload)
    if args.json:
        print(json.dumps({"assumptions": assumed, "steps": rows}, indent=1))
        return 0
    print(report.table(rows))
    print("\nassumptions:")
    for part in ("cluster", "workload"):
        print("\n".join(f"  {part}: {key} = {value}" for key, value in assumed[part].items()))
    print(report.NOT_MODELLED)
    return 0


def _bucket(args: argparse.Namespace) -> int:
    cluster = _cluster(args)
    rows = report.buckets(cluster, _ranks(args), _numbers("--bytes", args.bytes), args.element_bytes)
    if args.json:
        print(json.dumps({"cluster": vars(cluster), "buckets": rows}, indent=1, default=vars))
        return 0
    print(report.bucket_table(rows))
    print(
        "\nassumptions:\n" + "\n".join(f"  cluster: {key} = {value}" for key, value in vars(cluster).items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
