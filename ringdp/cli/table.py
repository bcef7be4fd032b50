"""The lines that `ringdp bench` prints: columns in the order that users of nccl-tests know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ringdp.cli.measure import Row

FORMS = (("out_of_place", "out-of-place"), ("in_place", "in-place"))
_LEFT = "{:>12} {:>12} {:>9} {:>6} {:>5}"  # the same widths for names, units and numbers
_FORM = " {:>11} {:>7} {:>7} {:>6}"


def heading() -> str:
    left = _LEFT.format("size", "count", "type", "redop", "root")
    units = _LEFT.format("(B)", "(elements)", "", "", "") + 2 * _FORM.format("(us)", "(GB/s)", "(GB/s)", "")
    names = left + 2 * _FORM.format("time", "algbw", "busbw", "#wrong")
    above = " " * len(left) + "".join(f"{title:>{len(_FORM.format(*'....'))}}" for _, title in FORMS)
    lines = (above, f"{names}  contestant  ratio", f"{units}              out / in")
    return "\n".join(f"#{line[1:]}" for line in lines)


def _numbers(form: dict[str, Any] | None) -> str:
    if form is None:
        return _FORM.format(*"----")
    wrong = "N/A" if form["wrong"] is None else form["wrong"]
    return _FORM.format(f"{form['time_us']:.2f}", f"{form['algbw']:.2f}", f"{form['busbw']:.2f}", wrong)


def line(row: Row) -> str:
    forms = [row.get(key) for key, _ in FORMS]
    left = _LEFT.format(*(row[key] for key in ("size", "count", "type", "redop", "root")))
    ratios = ("-" if f is None or f["ratio"] is None else f"{f['ratio']:.2f}" for f in forms)
    return f"{left}{''.join(map(_numbers, forms))}  {row['contestant']:<10}  {' / '.join(ratios)}"


def forms_of(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in rows:
        for key, _ in FORMS:
            if key in row:
                yield row["contestant"], row[key]


def summary(rows: Sequence[Row]) -> str:
    """The last lines: wrong elements altogether, and the average bus bandwidth of each contestant."""
    lines = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        forms = [form for who, form in forms_of(rows) if who == name]
        average = sum(form["busbw"] for form in forms) / len(forms)
        checked = [form["wrong"] for form in forms if form["wrong"] is not None]
        wrong = f"{sum(checked)} wrong elements" if checked else "not checked"
        lines.append(f"# {name:<8} average busbw {average:.3f} GB/s, {wrong}")
    return "\n".join(lines)
