"""Faults in real processes: each case of the table under `ringdp run`, and what is left of it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driver import leftovers
from driver.environ import MARK, environment
from faults.cases import Case, all_cases, few_cases

from ringdp.cli import doctor

HERE = Path(__file__).parent
LIMIT = 90  # seconds, for any job: start, fault and end
RANK = 1  # that has the fault
TIMES = Path(__file__).parents[2] / "build" / "fault-times.jsonl"


def said(folder: Path, rank: int) -> list[dict]:
    path = folder / f"said-{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(case: Case, ranks: int, folder: Path) -> tuple[int, str, float]:
    """The exit code, all that was written, and when it had ended."""
    env = environment() | case.environ
    if case.inject:
        env["RINGDP_INJECT"] = f"rank={RANK},{case.inject}"
    words = [sys.executable, "-m", "ringdp", "run", "-n", str(ranks), str(HERE / case.program), *case.options]
    try:
        done = subprocess.run(
            words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=LIMIT, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        leftovers.end_processes(env[MARK])
        output = (
            late.stdout if isinstance(late.stdout, str) else (late.stdout or b"").decode(errors="replace")
        )
        pytest.fail(f"it has not ended after {LIMIT} s\n{output}")
    return done.returncode, done.stdout.replace("\0", ""), time.time()  # Open MPI's banner ends with one


def note(case: Case, ranks: int, noticed: float, ended: float) -> None:
    """For the table in docs/promises.md: a line for each job, in seconds."""
    TIMES.parent.mkdir(exist_ok=True)
    with TIMES.open("a") as file:
        print(json.dumps([case.row, case.name, ranks, round(noticed, 3), round(ended, 3)]), file=file)


def ids(cases: list[tuple[Case, int]]) -> list[str]:
    return [f"{case.row}-{case.name.replace(' ', '_')}-{ranks}" for case, ranks in cases]


def try_case(case: Case, ranks: int, folder: Path) -> None:
    before = leftovers.shared_files()
    began = time.time()
    code, output, ended = run(case, ranks, folder)
    told = {rank: said(folder, rank) for rank in range(ranks)}
    pids = {rank: lines[0]["pid"] for rank, lines in told.items() if lines}
    fill = {"rank": RANK, "pid": pids.get(RANK, r"\d+")}
    context = f"{output}\n{told}"
    assert code in case.codes, f"exit code {code}, not {case.codes}\n{context}"
    for text in case.says:
        assert re.search(text.format_map(fill), output), f"nobody says {text.format_map(fill)!r}\n{context}"
    errors = {r: line for r, lines in told.items() for line in lines if line["what"] == "error" and r != RANK}
    if case.error:
        # Where a rank has died the launcher ends the others, sometimes before their Python has heard of it; and the
        # first to end the job has the launcher kill the rank that the others wait for.
        assert errors or max(case.codes) > 128, f"no survivor has got an error\n{context}"
        in_order = [line["type"] for line in sorted(errors.values(), key=lambda line: line["time"])]
        assert in_order[:1] in ([], [case.error]) and set(in_order) <= {case.error, "PeerError"}, context
    faults = [line["time"] for line in told[RANK] if line["what"] == "fault"]
    since = (
        faults[0] if faults else max((lines[0]["time"] for lines in told.values() if lines), default=began)
    )

    # What is left: the report alone, and in it all survivors say the same.
    reports = [p for p in folder.iterdir() if p.name.startswith("ringdp-report-")]
    if case.verdict:
        assert len(reports) == 1, f"reports: {reports}\n{context}"
        flights, bad = doctor.flights_in(reports[0])
        assert not bad, bad
        survivors = [f for f in flights if f.rank != RANK and f.verdict]
        assert {f.rank for f in flights} == set(range(ranks)), (
            f"recorders of {[f.rank for f in flights]}\n{context}"
        )
        for one in survivors:
            assert re.search(case.verdict.format_map(fill), one.verdict), (
                f"rank {one.rank}: {one.verdict}\n{context}"
            )
        assert output.rstrip().splitlines()[-1].startswith("ringdp run: rank "), context
        if not faults:  # the core has done it
            since = max((f.last + f.wall_offset) / 1e9 for f in flights if f.rank == RANK)
        noticed = min((line["time"] for line in errors.values()), default=since)
        note(case, ranks, noticed - since, ended - since)
        page = "\n".join(doctor.page(reports[0]))
        assert re.search(case.verdict.format_map(fill), page) and "try: " in page, page
        assert oct(reports[0].stat().st_mode & 0o777) == "0o700"
        assert all(oct(p.stat().st_mode & 0o777) == "0o600" for p in reports[0].iterdir())
    assert ended - since < case.seconds, f"{ended - since:.1f} s from the fault to the end\n{context}"
    left = (
        {p.name for p in folder.iterdir()} - {f"said-{r}" for r in range(ranks)} - {p.name for p in reports}
    )
    assert not left, left
    assert not (found := leftovers.end_processes(os.environ[MARK])), found
    assert not (files := leftovers.new_shared_files(before)), files


@pytest.mark.parametrize(("case", "ranks"), few_cases(), ids=ids(few_cases()))
def test_fault(case: Case, ranks: int, tmp_path: Path) -> None:
    try_case(case, ranks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "ranks"), all_cases(), ids=ids(all_cases()))
def test_fault_at_each_stage(case: Case, ranks: int, tmp_path: Path) -> None:
    try_case(case, ranks, tmp_path)
