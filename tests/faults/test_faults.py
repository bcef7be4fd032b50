"""Faults in real processes: each case of the table under `ringdp run`, and what is left of it."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import leftovers
from driver.environ import MARK, environment, mpirun
from driver.limit import default_signals
from faults.cases import (
    ALL,
    CASES,
    FILES,
    SOON,
    STOPPED,
    STOPPED_BY_TERM,
    Case,
    all_cases,
    hardest_cases,
    some_cases,
)
from faults.mutants import MUTANTS, Mutant

from ringdp import flight
from ringdp.cli import doctor

HERE = Path(__file__).parent
LIMIT = 90  # seconds, for any job: start, fault and end
BEGINS_IN = 2.5  # seconds that three ranks take to come out of init(), at the most, on a machine that does nothing else
RANK = 1  # that has the fault
TIMES = Path(__file__).parents[2] / "build" / "fault-times.jsonl"


def commit() -> str:
    """Of this checkout."""
    words = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


SEED = os.environ.get("TEST_FAULTS_SEED") or commit()


def said(folder: Path, rank: int) -> list[dict]:
    path = folder / f"said-{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(case: Case, ranks: int, folder: Path) -> tuple[int, int, str, float, float]:
    """The job's process, its exit code, all that was written, when it was sent a signal, and when it had ended."""
    env = environment() | case.environ
    if case.inject:
        env["RINGDP_INJECT"] = f"rank={RANK},{case.inject}"
    words = [
        sys.executable,
        "-m",
        "ringdp",
        "run",
        "-n",
        str(ranks),
        *case.of_launcher,
        str(HERE / case.program),
    ]
    with tempfile.TemporaryFile() as written:
        job = subprocess.Popen(
            [*words, *case.options], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=written,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=default_signals,
        )  # fmt: skip

        def output() -> str:
            written.seek(0)
            return (
                written.read().decode(errors="replace").replace("\0", "")
            )  # Open MPI's banner ends with one

        try:
            sent = 0.0
            if case.signal:
                wait_until_up(job, ranks, folder)
                sent = time.time()
                job.send_signal(case.signal)
            job.wait(LIMIT)
        except (subprocess.TimeoutExpired, TimeoutError):
            job.kill()
            job.wait()
            leftovers.end_processes(env[MARK])
            pytest.fail(f"it has not ended after {LIMIT} s\n{output()}")
        return job.pid, job.returncode, output(), sent, time.time()


def wait_until_up(job: subprocess.Popen[bytes], ranks: int, folder: Path) -> None:
    """All ranks have made a step."""
    end = time.monotonic() + LIMIT
    while not all(any(line["what"] == "step" for line in said(folder, rank)) for rank in range(ranks)):
        if time.monotonic() > end:
            raise TimeoutError
        if job.poll() is not None:
            return
        time.sleep(0.05)


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
    job, code, output, sent, ended = run(case, ranks, folder)
    told = {rank: said(folder, rank) for rank in range(ranks)}
    pids = {rank: lines[0]["pid"] for rank, lines in told.items() if lines and "pid" in lines[0]}
    fill = {"rank": RANK, "pid": pids.get(RANK, r"\d+")}
    context = f"{output}\n{told}"
    assert code in case.codes, f"exit code {code}, not {case.codes}\n{context}"
    for text in case.says:
        assert re.search(text.format_map(fill), output), f"nobody says {text.format_map(fill)!r}\n{context}"
    errors = {r: line for r, lines in told.items() for line in lines if line["what"] == "error" and r != RANK}
    check_errors(case, errors, context)
    check_caught(case, told, fill, context)
    check_goes_on(case, code, told, context)

    up = max((lines[0]["time"] for lines in told.values() if lines), default=began)
    since = sent or max((line["time"] for line in told[RANK] if line["what"] == "fault"), default=0.0)
    reports = [p for p in folder.iterdir() if p.name.startswith("ringdp-report-")]
    if case.verdict:
        flights = check_report(case, ranks, reports, fill, output, context)
        if not since:  # the core has done it
            since = max((f.last + f.wall_offset) / 1e9 for f in flights if f.rank == RANK)
        noticed = min((line["time"] for line in errors.values()), default=since)
        note(case, ranks, noticed - since, ended - since)
    # A machine that takes long to begin takes as much longer to end.
    slowness = max(1.0, (up - began) / BEGINS_IN)
    took = ended - (since or up)
    in_time = code == 0 or took < case.seconds * slowness
    assert in_time, f"{took:.1f} s from the fault to the end ({slowness=:.1f})\n{context}"
    check_left(folder, ranks, reports, before, job)


def check_errors(case: Case, errors: dict[int, dict], context: str) -> None:
    """What the survivors' Python gets."""
    if not case.error:
        return
    # Where a rank has died the launcher ends the others, sometimes before their Python has heard of it; and the
    # first to end the job has the launcher kill the rank that the others wait for.
    assert errors or max(case.codes) > 128, f"no survivor has got an error\n{context}"
    in_order = [line["type"] for line in sorted(errors.values(), key=lambda line: line["time"])]
    assert in_order[:1] in ([], [case.error]) and set(in_order) <= {case.error, "PeerError"}, context


def check_caught(case: Case, told: dict[int, list[dict]], fill: dict, context: str) -> None:
    """Errors that the ranks have got over: whose they should be, in the same words on each."""
    for rank, lines in told.items():
        wanted = [one for one in case.caught if one.who == ALL or rank == RANK]
        found = [line for line in lines if line["what"] == "caught"]
        assert [line["type"] for line in found] == [one.error for one in wanted], f"rank {rank}\n{context}"
        for line, one in zip(found, wanted, strict=True):
            text = one.text.format_map(fill)
            assert re.search(text, line["text"], re.DOTALL), (
                f"rank {rank}: {text!r}\n{line['text']}\n{context}"
            )
    words = [
        [re.sub(r"^rank \d+: ", "", line["text"]) for line in lines if line["what"] == "caught"]
        for lines in told.values()
    ]
    if all(one.who == ALL for one in case.caught):
        assert all(texts == words[0] for texts in words), f"the ranks do not say the same\n{context}"


def check_goes_on(case: Case, code: int, told: dict[int, list[dict]], context: str) -> None:
    """After exit code 0 all ranks have come to their end. All have saved, or gone on from a commit, alike."""
    if code == 0:
        assert all("end" in {line["what"] for line in lines} for lines in told.values()), context
    for what, is_due in (("saved", code == STOPPED_BY_TERM), ("resumed", "--restarts" in case.of_launcher)):
        lines = [(rank, line) for rank, lines in told.items() for line in lines if line["what"] == what]
        assert [rank for rank, _ in lines] == (list(told) if is_due else []), f"{what}\n{context}"
        assert len({(line["step"], line.get("sum")) for _, line in lines}) <= 1, f"{what}\n{context}"


def check_report(
    case: Case, ranks: int, reports: list[Path], fill: dict, output: str, context: str
) -> list[flight.Flight]:
    """All survivors say the same in it, and the doctor and the last line of the output say it as well."""
    assert len(reports) == 1, f"reports: {reports}\n{context}"
    flights, bad = doctor.flights_in(reports[0])
    assert not bad, bad
    assert {f.rank for f in flights} == set(range(ranks)), (
        f"recorders of {[f.rank for f in flights]}\n{context}"
    )
    verdict = case.verdict.format_map(fill)
    for one in flights:
        if one.rank != RANK and one.verdict:
            assert re.search(verdict, one.verdict), f"rank {one.rank}: {one.verdict}\n{context}"
    assert output.rstrip().splitlines()[-1].startswith("ringdp run: rank "), context
    page = "\n".join(doctor.page(reports[0]))
    assert re.search(verdict, page) and "try: " in page, page
    assert oct(reports[0].stat().st_mode & 0o777) == "0o700"
    assert all(oct(p.stat().st_mode & 0o777) == "0o600" for p in reports[0].iterdir())
    return flights


def check_left(folder: Path, ranks: int, reports: list[Path], before: set[str], job: int) -> None:
    """No process, no shared memory, and no file but the report. The names of recorders have the number of the job's
    process: those of jobs beside this one are not its own."""
    kept = {f"said-{r}" for r in range(ranks)} | {p.name for p in reports}
    assert not (left := {p.name for p in folder.iterdir()} - kept), left
    assert not (found := leftovers.end_processes(os.environ[MARK])), found
    files = [line for line in leftovers.new_shared_files(before) if f"-{job}-" in line]
    assert not files


@pytest.mark.parametrize(("case", "ranks"), hardest_cases(), ids=ids(hardest_cases()))
def test_fault(case: Case, ranks: int, tmp_path: Path) -> None:
    try_case(case, ranks, tmp_path)


SAMPLE = some_cases(SEED)


@pytest.mark.parametrize(("case", "ranks"), SAMPLE, ids=ids(SAMPLE))
def test_some_others(case: Case, ranks: int, tmp_path: Path) -> None:
    """Other ones with each commit: each is in `make faults` too, by this name."""
    try_case(case, ranks, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "ranks"), all_cases(), ids=ids(all_cases()))
def test_fault_at_each_stage(case: Case, ranks: int, tmp_path: Path) -> None:
    try_case(case, ranks, tmp_path)


def test_the_report_has_all_ranks_under_plain_mpirun(tmp_path: Path) -> None:
    """Nobody looks for recorders after the job: who ends it brings that of the rank that is stopped."""
    words = [mpirun(), "-n", "2", sys.executable, str(HERE / "job.py"), "--do", "stop"]
    env = environment() | SOON
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    (report,) = tmp_path.glob("ringdp-report-*")
    flights, bad = doctor.flights_in(report)
    assert done.returncode != 0 and [f.rank for f in flights] == [0, 1] and not bad, done.stderr.decode()
    assert re.search(STOPPED.format(rank=1, pid=r"\d+"), flights[0].verdict), flights[0].verdict


BRINGS = """
import pathlib, ringdp
from mpi4py import MPI
from ringdp import watch
ringdp.init()
if ringdp.rank() == 0:
    watch.exception(0, "ValueError: x", False)
    (report,) = pathlib.Path().glob("ringdp-report-*")
    print(*sorted(p.name for p in report.iterdir()))
MPI.COMM_WORLD.barrier()
ringdp.shutdown()
"""


def test_who_ends_the_job_brings_the_recorders_of_the_living(tmp_path: Path) -> None:
    """At once: when the launcher kills them, nobody may be left who sees it."""
    words = [mpirun(), "-n", "2", sys.executable, "-c", BRINGS]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "rank-0.flight rank-1.flight"), done.stderr


def test_each_fault_has_tests() -> None:
    """Of those that docs/promises.md lists."""
    text = (HERE.parents[1] / "docs" / "promises.md").read_text()
    rows = re.findall(r"^\| (\d+(?:(?:,| to) \d+)*) \|", text, re.MULTILINE)
    assert (
        set(numbers(rows))
        == set(range(1, 28))
        == {n for case in CASES for n in (case.row, *case.also)} | set(FILES)
    )
    assert all((HERE.parents[1] / file).is_file() for files in FILES.values() for file in files)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_each_guard_is_where_mutants_take_it_out(mutant: Mutant) -> None:
    assert (HERE.parents[1] / mutant.file).read_text().count(mutant.guard) == 1


def numbers(rows: list[str]) -> Iterator[int]:
    """Of "9 to 13" and "16, 17"."""
    for row in rows:
        first, *rest = map(int, re.findall(r"\d+", row))
        yield from range(first, rest[0] + 1) if " to " in row else (first, *rest)
