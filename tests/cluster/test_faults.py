"""Faults between hosts: links that are cut, ranks of another host that are stopped or killed. What the ranks of each
host say then, when the job has ended, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from cluster import hosts as cluster_hosts
from cluster.hosts import Hosts
from cluster.started import LIMIT, Started
from driver.leftovers import marked_processes

from ringdp.cli import doctor

REASON = cluster_hosts.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

JOB = Path(__file__).resolve().parent.parent / "faults" / "job.py"
TIMES = JOB.parents[2] / "build" / "fault-times.jsonl"
T = 2.0  # RINGDP_TIMEOUT
IN_TRANSFER = "100mbit"  # a step's 4 MiB keep the link busy for a third of a second


@pytest.fixture
def two() -> Iterator[Hosts]:
    """New ones for each test: after a cut, what is left of the connections of one job disturbs the next."""
    with Hosts(2) as hosts:
        yield hosts


class Job(Started):
    """tests/faults/job.py on all hosts, `per_host` ranks on each; its ranks write into `folder`."""

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        per_host: int = 1,
        options: Sequence[str] = ("--steps", "1000000"),
        environ: Mapping[str, str] | None = None,
        by_ringdp_run: bool = False,
    ) -> None:
        self.hosts, self.folder, self.per_host = hosts, folder, per_host
        words = [sys.executable, str(JOB), *options]
        command, env = hosts.job(words, per_host)
        if by_ringdp_run:
            command = hosts.ringdp_run(words, per_host)
        super().__init__(command, folder, env | {"RINGDP_TIMEOUT": str(T)} | dict(environ or {}))

    @property
    def ranks(self) -> int:
        return self.per_host * len(self.hosts.names)

    def said(self, rank: int) -> list[dict]:
        path = self.folder / f"said-{rank}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pid(self, rank: int) -> int:
        """As its host knows it."""
        return int(self.said(rank)[0]["pid"])

    def wait_for_steps(self) -> None:
        """All ranks are in the loop of exchanges."""
        self.wait_for(
            "a step", lambda: all(any(s["what"] == "step" for s in self.said(r)) for r in range(self.ranks))
        )

    def send(self, signal: str, rank: int) -> None:
        words = ["kill", f"-{signal}", str(self.pid(rank))]
        subprocess.run(self.hosts.on(rank // self.per_host, words), check=True)

    def ranks_that_run(self) -> list[int]:
        """Their process numbers here, the launcher's not among them."""
        running = []
        for pid in marked_processes(self.mark):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode() + b"\0"):
                    running.append(pid)
        return running

    def errors(self) -> dict[int, dict]:
        """What the ranks' Python got."""
        return {r: s for r in range(self.ranks) for s in self.said(r) if s["what"] == "error"}

    def shared_memory(self, host: int) -> list[str]:
        return subprocess.run(
            self.hosts.on(host, ["ls", "/dev/shm"]), capture_output=True, text=True
        ).stdout.split()

    def note(self, row: int, name: str, began: float, silent: Sequence[int] = ()) -> None:
        """For the table in docs/promises.md, as tests/faults does: seconds from the fault until ranks of all hosts have
        their errors, but for hosts of which no rank can have one; and until the job was over."""
        errors = self.errors()
        of_host = [
            min((e["time"] for r, e in errors.items() if r // self.per_host == host), default=time.time())
            for host in range(len(self.hosts.names))
            if host not in silent
        ]
        TIMES.parent.mkdir(exist_ok=True)
        with TIMES.open("a") as file:
            times = round(max(of_host) - began, 3), round(time.time() - began, 3)
            print(
                json.dumps([row, f"{name}, {self.per_host} on each of 2 hosts", self.ranks, *times]),
                file=file,
            )

    def verdicts(self) -> dict[int, str]:
        """Those in the report, by rank."""
        reports = [p for p in self.folder.iterdir() if p.name.startswith("ringdp-report-")]
        assert len(reports) < 2, f"reports: {reports}\n{self.output}"
        if not reports:
            return {}
        flights, bad = doctor.flights_in(reports[0])
        assert not bad, bad
        return {f.rank: f.verdict for f in flights}


def says(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def nothing_is_left(job: Job) -> None:
    """No process of any host, no shared memory there, and no file but the report."""
    job.wait_for_processes()
    assert [job.shared_memory(host) for host in range(len(job.hosts.names))] == [[]] * len(job.hosts.names)
    known = {"log"} | {f"said-{rank}" for rank in range(job.ranks)}
    left = {p.name for p in job.folder.iterdir() if not p.name.startswith("ringdp-report-")} - known
    assert not left, left


def next_job(hosts: Hosts, folder: Path) -> None:
    """Of which the ranks begin and end."""
    command, env = hosts.job([sys.executable, "-c", "import ringdp; ringdp.init()"])
    subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, timeout=LIMIT, check=True)


def kill(two: Hosts, folder: Path, rank: int, per_host: int) -> tuple[dict[int, str], int]:
    """What the other ranks' Python and recorders say, in one text each; and the process.

    Half a second after a death the launcher ends the others, whether they have said something or not: none was too
    late in 245 jobs, on a machine of two cores with a load of 8 to 15.
    """
    two.set_rate(None)
    with Job(two, folder, per_host, environ={"RINGDP_TIMEOUT": "600"}) as job:
        job.wait_for_steps()
        began = time.time()
        job.send("KILL", rank)
        assert job.end() == 128 + 9, job.output
        job.note(1, "killed", began, silent=[rank] if per_host == 1 else [])
        words: dict[int, str] = {r: verdict for r, verdict in job.verdicts().items() if verdict}
        for r, error in job.errors().items():
            assert error["type"] == "PeerError", f"{r}: {error}"
            assert error["time"] - began < 60, error  # of the 600 s that it would wait
            words[r] = f"{words.get(r, '')} {error['text']}".strip()
        if per_host == 1:  # nobody was left on its host: the next job there brings it into the report
            job.wait_for_processes()
            (kept,) = job.shared_memory(rank)
            assert kept.endswith(".flight"), kept
            next_job(two, folder)
            assert rank in job.verdicts(), job.output
        nothing_is_left(job)
        return words, job.pid(rank)


def test_a_rank_that_is_killed_on_another_host_is_named_soon(two: Hosts, tmp_path: Path) -> None:
    words, pid = kill(two, tmp_path, rank=3, per_host=2)
    dead = rf"rank 3 \(host host2, process {pid}\) is dead"
    assert set(words) == {0, 1, 2} and all(says(dead, words[r]) for r in words), words


def test_a_rank_alone_on_its_host_that_is_killed_is_named(two: Hosts, tmp_path: Path) -> None:
    """Nobody is left there to say more."""
    words, _ = kill(two, tmp_path, rank=1, per_host=1)
    assert set(words) == {0} and "rank 1 (host host2) is lost: its connection has ended" in words[0], words


def test_a_rank_that_is_stopped_on_another_host_is_named_as_stopped(two: Hosts, tmp_path: Path) -> None:
    """It is itself the first of its host that is asked, and does not answer: the next one does."""
    two.set_rate(None)
    with Job(two, tmp_path, per_host=2) as job:
        job.wait_for_steps()
        began = time.time()
        job.send("STOP", 2)
        code = job.end()
        job.note(3, "stopped", began)
        stopped = rf"rank 2 \(host host2, process {job.pid(2)}\) is stopped \(state T"
        errors = job.errors()
        assert code == 1, job.output
        assert errors, job.output
        for rank, error in errors.items():
            assert error["type"] in ("DeadlineError", "PeerError"), f"{rank}: {error}"
            assert says(stopped, error["text"]), f"{rank}: {error}"
        verdicts = {rank: verdict for rank, verdict in job.verdicts().items() if verdict and rank != 2}
        assert verdicts and all(says(stopped, verdict) for verdict in verdicts.values()), verdicts
        nothing_is_left(job)


def test_when_a_link_is_cut_in_mid_transfer_each_side_names_the_other(two: Hosts, tmp_path: Path) -> None:
    two.set_rate(IN_TRANSFER)
    with Job(two, tmp_path) as job:
        job.wait_for_steps()
        two.cut(1)
        try:
            began = time.time()
            job.wait_for("the end of all waits", lambda: set(job.errors()) == {0, 1})
            job.wait_for("the end of all ranks", lambda: not job.ranks_that_run())
            job.note(22, "link cut", began)
            for rank, error in job.errors().items():
                other = 1 - rank
                silent = rf"rank {other} \(host host{other + 1}\) does not answer: .*; asked by host host{rank + 1}"
                assert error["type"] == "DeadlineError" and says(silent, error["text"]), f"{rank}: {error}"
                assert T <= error["time"] - began + 1 < T + 10, error
            assert [job.shared_memory(host) for host in (0, 1)] == [[], []]
        finally:
            two.heal(1)
        assert job.end() != 0, job.output
        nothing_is_left(job)


@pytest.mark.parametrize("per_host", [1, 2])
def test_under_ringdp_run_nothing_outlasts_a_link_that_stays_cut(
    two: Hosts, tmp_path: Path, per_host: int
) -> None:
    """Neither the launcher, which waits for its daemon on the other host, nor that daemon, which waits for it."""
    two.set_rate(IN_TRANSFER)
    with Job(two, tmp_path, per_host, by_ringdp_run=True) as job:
        job.wait_for_steps()
        two.cut(1)
        try:
            began = time.time()
            assert job.end() == 1, job.output
            silent = r"ringdp run: ranks? [0-9, ]+ \(host host[12]\) do(es)? not answer: .*ringdp doctor"
            assert says(silent, job.output), job.output
            nothing_is_left(job)
            job.note(22, "link stays cut (over: nothing is left)", began)
        finally:
            two.heal(1)


def test_a_link_that_is_mended_in_time_costs_time_alone(two: Hosts, tmp_path: Path) -> None:
    two.set_rate(IN_TRANSFER)
    with Job(two, tmp_path, options=("--steps", "10"), environ={"RINGDP_TIMEOUT": "60"}) as job:
        job.wait_for_steps()
        two.cut(1)
        try:
            time.sleep(1)
            assert job.process.poll() is None, job.output
        finally:
            two.heal(1)
        assert job.end() == 0, job.output
        assert [job.said(rank)[-1]["what"] for rank in (0, 1)] == ["end", "end"]  # all sums were right
        assert not list(tmp_path.glob("ringdp-report-*"))
        nothing_is_left(job)


def test_an_exception_is_in_the_reports_of_other_hosts_and_printed_once(two: Hosts, tmp_path: Path) -> None:
    two.set_rate(None)
    options = ("--steps", "1000000", "--do", "raise", "--rank", "3", "--step", "5")
    with Job(two, tmp_path, per_host=2, options=options) as job:
        assert job.end() == 1, job.output
        assert job.output.count("Traceback (most recent call last)") == 1, job.output
        verdicts = {rank: verdict for rank, verdict in job.verdicts().items() if verdict}
        assert 3 in verdicts, job.output
        assert all(says("rank 3 .* was ended by ValueError", verdict) for verdict in verdicts.values()), (
            verdicts
        )
        nothing_is_left(job)
