"""The tables of docs/performance.md beside that of the targets, as Markdown; a list of paragraphs each."""

from collections.abc import Callable, Iterable, Sequence

from perf.results import MPIS, Missing, Number, Results, size_text
from perf.targets import peak

NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}
LABELS = {
    "ringdp": "ringdp", "ringdp-shared": "ringdp, shared memory", "ringdp-torch": "ringdp, torch",
    "ringdp-wire-bf16": "ringdp, sent as bfloat16", "ringdp-wire-fp16": "ringdp, sent as float16",
    "ringdp-bf16": "ringdp, sent as bfloat16", "ringdp-fp16": "ringdp, sent as float16",
    "ringdp:bfloat16": "ringdp, bfloat16 tensor", "best mpi": "mpi4py", "gloo": "gloo",
    "floor-in-place": "floor in place", "floor-staged": "floor staged", "raw-link": "raw limit",
    "ddp": "DDP over gloo", "ddp-bf16": "DDP over gloo, bfloat16 hook", "plain": "plain, no exchange",
    "horovod": "Horovod",
}  # fmt: skip
LINKS = {"link 2x1": "2 hosts × 1 rank", "link 4x1": "4 hosts × 1 rank", "link 2x2": "2 hosts × 2 ranks"}
NOTHING = "–"
ByFamily = dict[str, Results]  # in the order of the columns


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: float) -> str:
    """Three digits; no more than two behind the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def per_size(families: ByFamily, job: str) -> list[str]:
    """Microseconds, a table for each family: sizes down, contestants across."""
    parts = []
    for family, results in families.items():
        try:
            rows = _rows(results, job, lambda time, _: time.value)
        except Missing as reason:
            parts.append(f"{NAMES[family]}: {reason}.")
            continue
        ranks = results.job(job)["ranks"]
        parts += [
            f"{NAMES[family]}, {ranks} ranks, µs{_shortened(results, job)}:",
            rows,
            *_left_out(results, job),
        ]
    return parts


def links(families: ByFamily) -> list[str]:
    """Bus bandwidth, of the float32 bytes whatever goes on the wire."""
    parts = []
    for family, results in families.items():
        for job, words in LINKS.items():
            hosts = int(words.split()[0])
            try:
                rows = _rows(results, job, lambda time, count, hosts=hosts: gigabits(time, count, hosts))
            except Missing as reason:
                parts.append(f"{NAMES[family]}, {words}: {reason}.")
                continue
            parts.append(
                f"{NAMES[family]}, {words}, Gbit/s: 2(H−1)/H · n bytes in the time taken{_shortened(results, job)}:"
            )
            parts += [rows, *_left_out(results, job)]
    return parts


def gigabits(time: Number, count: int, hosts: int) -> float:
    """What each host's link had to carry at the least, in Gbit/s."""
    return 4 * count * 8 * 2 * (hosts - 1) / hosts / time.value / 1e3


def steps(families: ByFamily) -> list[str]:
    parts = []
    for family, results in families.items():
        rows = []
        for name in ("plain", "ddp", "ddp-bf16", "horovod", "ringdp", "ringdp-bf16", "ringdp-fp16"):
            job = "step horovod" if name == "horovod" else "step"
            cells = [
                _milliseconds(results, job, name),
                _milliseconds(results, "step alone", name),
                _peak(results, name),
            ]
            if cells != [NOTHING] * 3:
                rows.append([LABELS[name], *cells])
        heading = [NAMES[family], "two ranks, ms", "one rank, ms", "peak Pss, MiB a rank"]
        parts.append(table(heading, rows) if rows else f"{NAMES[family]}: not run.")
    return parts


def idle(families: ByFamily) -> list[str]:
    rows = []
    for family, results in families.items():
        try:
            found = results.job("idle")
            cells = [
                ", ".join(f"{share * 100:.2f} %" for share in found[key]) for key in ("engine", "others")
            ]
        except Missing as reason:
            cells = [str(reason), ""]
        rows.append([NAMES[family], *cells])
    return [table(["of a core, each rank", "engine's thread", "all other threads of the rank"], rows)]


# --- their cells ---


def _rows(results: Results, job: str, value: Callable[[Number, int], float]) -> str:
    # MPI's two forms are one column.
    shown = list(dict.fromkeys("best mpi" if e in MPIS else e for e in results.entries(job)))
    rows = []
    for count in results.counts(job):
        cells = []
        for entry in shown:
            try:
                cells.append(figure(value(results.time(job, entry, count), count)))
            except Missing:
                cells.append(NOTHING)
        rows.append([size_text(count), *cells])
    return table(["as float32", *(LABELS.get(e, e.replace(":", ", ")) for e in shown)], rows)


def _shortened(results: Results, job: str) -> str:
    found = results.job(job)
    incomplete = f", incomplete ({found['incomplete']})" if "incomplete" in found else ""
    return (", from a shortened run" if found.get("quick") else "") + incomplete


def _left_out(results: Results, job: str) -> list[str]:
    left = results.job(job).get("left_out", {})
    if not left:
        return []
    return ["Left out: " + "; ".join(f"{LABELS.get(name, name)} ({why})" for name, why in left.items()) + "."]


def _milliseconds(results: Results, job: str, entry: str) -> str:
    try:
        return figure(results.time(job, entry).value / 1e3)
    except Missing:
        return NOTHING


def _peak(results: Results, entry: str) -> str:
    try:
        return figure(peak(results, entry))
    except Missing:
        return NOTHING
