"""docs/performance.md from the results of each MPI family and notes.md: a pure function to text."""

from collections.abc import Iterable

from perf import tables, targets
from perf.results import Missing, Results
from perf.tables import NAMES, ByFamily, figure, table

PICTURES = {
    "bus-bandwidth.svg": "Bus bandwidth over size, two ranks of one host",
    "step-time.svg": "Time of a training step",
    "line-rate.svg": "All-reduce across links of 1 Gbit/s",
}

_HEAD = """# Performance

`make bench` measures what stands here and writes this page; explanations come from `tests/perf/notes.md`. Every
figure is a ratio or a time taken in one run beside its peers and the physical limit; times are of this machine only.
`make perf-check` repeats a shorter run and says what has moved beyond noise.

| | |
|---|---|
| `make bench` | everything, some ten minutes; `make bench ARGS="small step"` only these scenarios |
| `make bench MPI=mpich` | the same with MPICH, in a second environment, `.venv-mpich`; its figures join this page |
| `make perf-check` | a shorter run against `tests/perf/baseline.json`; exit code 1 if something got worse |

The machine should be idle. Several hosts need root, iproute2 and util-linux; without them the rows about links are
skipped.
"""


def document(families: ByFamily, notes: dict[str, str], pictures: Iterable[str] = ()) -> str:
    """The whole page; `families` in the order of the columns, `pictures` the files there are in docs/pictures."""
    there = set(pictures)

    def picture(name: str) -> str:
        return f"![{PICTURES[name]}](pictures/{name})" if name in there else ""

    parts = [
        _HEAD,
        "## How it is measured", notes.get("how", ""), _machine(families),
        "## Targets", _targets(families), notes.get("targets", ""),
        "## One host, two ranks", picture("bus-bandwidth.svg"),
        "### 64 KiB and more", *tables.per_size(families, "large"), notes.get("large", ""),
        "### Small messages, calls back to back",
        *tables.per_size(families, "small"), notes.get("small", ""),
        "### bfloat16 and float16", *tables.per_size(families, "types"), notes.get("types", ""),
        "## Four ranks on two cores", *tables.per_size(families, "four small"),
        *tables.per_size(families, "four"), notes.get("four", ""),
        "## Several hosts, links of 1 Gbit/s", picture("line-rate.svg"), *tables.links(families), notes.get("link", ""),
        "### Small messages between two hosts, calls back to back",
        *tables.per_size(families, "link small 2x1"), notes.get("link small", ""),
        "## A training step", picture("step-time.svg"), *tables.steps(families), notes.get("step", ""),
        "## An idle engine", *tables.idle(families), notes.get("idle", ""),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _machine(families: ByFamily) -> str:
    first = next(iter(families.values()))
    rows = [[key, value] for key, value in first.about.items() if key not in ("MPI", "date")]
    rows.append(
        [
            "MPI",
            ", ".join(f"{r.about.get('MPI', '?')} ({r.about.get('date', '?')})" for r in families.values()),
        ]
    )
    return table(["", ""], rows)


def _targets(families: ByFamily) -> str:
    heading = ["what", "target", *(NAMES[f] for f in families), "repeat with"]
    rows = []
    for target in targets.TARGETS:
        cells = [verdict(target, results) for results in families.values()]
        rows.append([target.what, target.text, *cells, f'`make bench ARGS="{target.scenario}"`'])
    return table(heading, rows)


def verdict(target: targets.Target, results: Results) -> str:
    """As in "0.95 ×, met", or why there is no figure."""
    try:
        number = target.measure(results)
    except Missing as reason:
        return str(reason)
    where = f" at {number.where}" if number.where else ""
    word = "met" if target.met(number) else "**missed**"
    return f"{figure(number.value)} {target.unit}".strip() + f"{where}, {word}"
