"""Counts what pytest wrote: one file of results from each rank, one result for each test."""

import xml.etree.ElementTree as xml
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Results:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)  # a line for each failure
    reasons: Counter[str] = field(default_factory=Counter)  # why tests were skipped

    def fail(self, problem: str) -> None:
        self.failed += 1
        self.problems.append(problem)

    def add(self, other: "Results") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.problems += other.problems
        self.reasons += other.reasons

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def read_results(folder: Path, ranks: int) -> Results:
    """What the `ranks` processes wrote into `folder`: a test fails if it failed on any rank or is missing on one."""
    results = Results()
    outcomes: dict[str, list[str]] = {}
    for rank in range(ranks):
        file = folder / f"rank-{rank}.xml"
        if not file.exists():
            results.fail(f"rank {rank} of {ranks} ended before it wrote its results")
            continue
        for case in xml.parse(file).iter("testcase"):
            name = f"{case.get('classname')}.{case.get('name')}"
            outcomes.setdefault(name, []).append(outcome_of(case, results, rank, ranks))
    for name, each in outcomes.items():
        on_ranks = f" on {each.count('failed')} of {ranks} ranks" if ranks > 1 else ""
        if "failed" in each:
            results.fail(f"{name} failed{on_ranks}")
        elif all(o == "skipped" for o in each):
            results.skipped += 1
        elif len(each) < ranks and results.failed == 0:
            results.fail(f"{name} ran on {len(each)} of {ranks} ranks only")
        else:
            results.passed += 1
    return results


def outcome_of(case: xml.Element, results: Results, rank: int, ranks: int) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skip = case.find("skipped")
    if skip is None:
        return "passed"
    if rank == 0:
        results.reasons[skip.get("message") or "no reason given"] += 1
    return "skipped"
