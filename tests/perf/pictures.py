"""The pictures of docs/performance.md, as SVG: bus bandwidth over size, step time, line rate."""

from pathlib import Path
from typing import Any

from perf.document import PICTURES
from perf.results import Missing, Results, size_text
from perf.tables import LABELS, LINKS, NAMES, ByFamily

COLOURS = {
    "ringdp": "#0b6e99", "ringdp-shared": "#2a9d8f", "ringdp-wire-bf16": "#7fb7be", "ringdp-bf16": "#7fb7be",
    "best mpi": "#d1495b", "gloo": "#edae49", "ddp": "#edae49", "ddp-bf16": "#f4d58d", "horovod": "#9c6644",
    "floor-in-place": "#444444", "floor-staged": "#999999", "raw-link": "#444444", "plain": "#bbbbbb",
}  # fmt: skip


def draw_all(families: ByFamily, folder: Path) -> None:
    """Writes those whose figures there are; the others keep the file they have."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text: small files, and the same ones for the same figures.
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "ringdp", "font.size": 9, "axes.axisbelow": True}
    )
    folder.mkdir(parents=True, exist_ok=True)
    for (name, title), draw in zip(PICTURES.items(), (bus_bandwidth, step_time, line_rate), strict=True):
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        try:
            draw(axes, families)
        except Missing as reason:
            print(f"   no {name}: {reason}", flush=True)
        else:
            axes.set_title(title)
            axes.grid(True, alpha=0.3)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)


def bus_bandwidth(axes: Any, families: ByFamily) -> None:
    first = next(iter(families.values()))
    ranks = first.job("large")["ranks"]
    for entry in ("floor-in-place", "ringdp-shared", "floor-staged", "ringdp", "best mpi", "gloo"):
        dashed = "--" if entry.startswith("floor") else "-"
        _line(
            axes,
            first,
            ranks,
            entry,
            LABELS[entry] if entry != "best mpi" else _allreduce_of(families, 0),
            dashed,
        )
    if len(families) > 1:
        _line(axes, list(families.values())[1], ranks, "best mpi", _allreduce_of(families, 1), ":")
    counts = first.counts("large")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([4 * c for c in counts], [size_text(c) for c in counts])
    axes.set_ylabel("GB/s, 2(N−1)/N · n / time")
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _allreduce_of(families: ByFamily, index: int) -> str:
    return f"{NAMES[list(families)[index]]}, Allreduce"


def _line(axes: Any, results: Results, ranks: int, entry: str, label: str, style: str) -> None:
    xs, ys = [], []
    for count in results.counts("large"):
        try:
            time = results.time("large", entry, count).value
        except Missing:
            continue
        xs.append(4 * count)
        ys.append(4 * count * 2 * (ranks - 1) / ranks / time / 1e3)
    if xs:
        axes.plot(xs, ys, style, color=COLOURS[entry], label=label, marker="o", markersize=3)


def step_time(axes: Any, families: ByFamily) -> None:
    results = next(iter(families.values()))
    bars = []
    for name in ("plain", "ringdp-bf16", "ringdp", "ddp-bf16", "horovod", "ddp"):
        try:
            bars.append(
                (name, results.time("step horovod" if name == "horovod" else "step", name).value / 1e3)
            )
        except Missing:
            continue
    if not bars:
        raise Missing("no step was measured")
    bars.reverse()
    shown = axes.barh([LABELS[n] for n, _ in bars], [t for _, t in bars], color=[COLOURS[n] for n, _ in bars])
    axes.bar_label(shown, fmt="%.0f ms", padding=3)
    axes.margins(x=0.12)
    axes.set_xlabel("ms; 25.6 million float32 parameters, two ranks of one host")


def line_rate(axes: Any, families: ByFamily) -> None:
    groups = [
        (family, job, results)
        for family, results in families.items()
        for job in LINKS
        if "points" in results.jobs.get(job, {})
    ]
    if not groups:
        raise Missing("no link was measured")
    entries = ("best mpi", "ringdp", "ringdp-wire-bf16")
    width = 0.8 / len(entries)
    for i, entry in enumerate(entries):
        xs, ys = [], []
        for at, (_, job, results) in enumerate(groups):
            try:
                ys.append(results.ratio(job, "raw-link", entry, results.counts(job)[-1]).value)
                xs.append(at + (i - 1) * width)
            except Missing:
                continue
        label = "MPI_Allreduce" if entry == "best mpi" else LABELS[entry]
        if xs:
            axes.bar_label(axes.bar(xs, ys, width, color=COLOURS[entry], label=label), fmt="%.2f", fontsize=7)
    axes.axhline(1, color=COLOURS["raw-link"], linestyle="--", linewidth=1, label="raw limit")
    axes.set_xticks(
        range(len(groups)),
        [f"{NAMES[f]}\n{job.split()[1].replace('x', ' hosts × ')}" for f, job, _ in groups],
    )
    axes.set_ylim(top=1.3 * max(1, axes.dataLim.ymax))  # room for the legend
    axes.set_ylabel("of the raw limit")
    axes.legend(fontsize=8, frameon=False, ncols=2)
