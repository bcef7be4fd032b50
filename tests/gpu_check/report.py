"""The report: what ran where, from which commit, and whether it counts. Its forms: JSON, Markdown, a table."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from driver.phases import ROOT

from gpu_check.parts import PARTS
from gpu_check.results import FAILED, OK, SKIPPED
from gpu_check.supervise import Outcome

SCHEMA = 1


@dataclass(frozen=True)
class Commit:
    name: str  # empty: this is no checkout
    changed: bool  # files of it are not as committed


def commit() -> Commit:
    def said(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = said("rev-parse", "HEAD")
    return Commit(name or "", name is not None and said("status", "--porcelain", "-uno") != "")


def make(outcomes: list[Outcome], date: str, quick: bool, seconds: float, stand_in: bool) -> dict[str, Any]:
    facts = {name: value for outcome in outcomes for name, value in outcome.facts.items()}
    # Of a part that has not said what libcuda it is: it may be the stand-in.
    of_machine = facts.pop("stand_in", True)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "date": date,
        "ringdp": facts.pop("ringdp", ""),
        "commit": asdict(commit()),
        "stand-in": bool(stand_in or of_machine),
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": facts,
        "parts": [{**asdict(outcome), "state": outcome.state} for outcome in outcomes],
    }
    report["not green because"] = not_green(report)
    report["green"] = not report["not green because"]
    return report


def not_green(report: dict[str, Any]) -> list[str]:
    """Why a report does not show that ringdp works on a GPU; empty: it does. From what is in it, not from its word."""
    reasons = []
    if report.get("schema") != SCHEMA:
        return [f"its schema is {report.get('schema')!r}, not {SCHEMA}"]
    if report["stand-in"]:
        reasons.append("it ran over the stand-ins, or nothing says that it did not: there was no GPU")
    if report["quick"]:
        reasons.append("it is a quick run")
    if not report["commit"]["name"]:
        reasons.append("nothing says of which commit it is")
    elif report["commit"]["changed"]:
        reasons.append("there were changes that are not in its commit")
    parts = {part["name"]: part for part in report["parts"]}
    for name, part in PARTS.items():
        states = [result["state"] for result in parts.get(name, {"results": []})["results"]]
        if FAILED in states:
            reasons.append(f"{name}: {states.count(FAILED)} failed")
        elif part.required and OK not in states:
            reasons.append(f"{name} did not run")
    return reasons


def is_green(report: dict[str, Any]) -> bool:
    return not not_green(report)


# ---- Its forms -------------------------------------------------------------------------------------------------------


def write(report: dict[str, Any], folder: Path) -> Path:
    """NAME-DATE.json and .md: the path of the second."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name_of(report)}-{report['date'].replace(':', '')}"
    page = folder / f"{stem}.md"
    for file, text in (
        (page.with_suffix(".json"), json.dumps(report, indent=1) + "\n"),
        (page, markdown(report)),
    ):
        file.write_text(
            text.replace(f"{ROOT}/", ""), encoding="utf-8"
        )  # where the checkout lies is nobody's concern
    return page


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports of a folder, by their file's name."""
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def name_of(report: dict[str, Any]) -> str:
    """Of the first GPU, as a file can be called."""
    gpu = report["machine"].get("gpu 0", {}).get("name", "no-gpu")
    words = "".join(c if c.isalnum() else " " for c in ("stand-in" if report["stand-in"] else gpu)).split()
    return "-".join(words).lower()


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{'':12}{'ok':>6}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for o in outcomes:
        counts = f"{o.count(OK):6}{o.count(FAILED):8}{o.count(SKIPPED):9}{o.seconds:9.1f}"
        lines.append(f"{o.name:12}{counts}  {o.asks}")
    for o in outcomes:
        for r in o.results:
            if r.figures and r.name.startswith(("all-reduce", "copy", "overlap")):
                lines.append(f"  {r.name:40} {figures(r.figures)}")
    for o in outcomes:
        lines += [f"{r.state} {o.name}, {r.name}: {r.why}" for r in o.results if r.state != OK]
    return "\n".join(lines)


def figures(given: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g} {unit}".rstrip() for name, (value, unit) in given.items())


def markdown(report: dict[str, Any]) -> str:
    verdict = (
        "**Green.**" if report["green"] else "**Not green**: " + "; ".join(report["not green because"]) + "."
    )
    lines = [
        f"# {name_of(report)}, {report['date']}",
        "",
        verdict,
        "",
        f"ringdp {report['ringdp']}, commit {report['commit']['name'] or 'unknown'}"
        + (" with changes" if report["commit"]["changed"] else "")
        + f"; {report['seconds']:.0f} s"
        + (", quick" if report["quick"] else ""),
        "",
        "| machine | |",
        "|---|---|",
        *(f"| {name} | {cell(said(value))} |" for name, value in report["machine"].items()),
    ]
    for part in report["parts"]:
        lines += ["", f"## {part['name']}: {part['asks']}", "", "| | | figures | |", "|---|---|---|---|"]
        for result in part["results"]:
            cells = [result["name"], result["what"], figures(result["figures"])]
            state = result["state"] + (f": {result['why'][:400]}" if result["why"] else "")
            lines.append("| " + " | ".join(map(cell, [*cells, state])) + " |")
    return "\n".join(lines) + "\n"


def said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {one}" for name, one in value.items() if one is not None)
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
