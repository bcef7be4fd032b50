"""`ringdp run --elastic` on two hosts: ranks of the other host that die are gone on without; where a link is cut, the
job ends on both sides, as nobody can know whether the other side goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cluster import hosts as cluster_hosts
from cluster.hosts import Hosts
from cluster.started import Started
from driver.environ import environment
from driver.leftovers import marked_processes

from ringdp import _build

REASON = cluster_hosts.missing() or (
    "ranks that are lost are recovered with Open MPI alone" if _build.MPI_FAMILY != "openmpi" else None
)
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

PROGRAM = Path(__file__).resolve().parent.parent / "faults" / "elastic_job.py"
PER_HOST, RANKS = 2, 4
T = 3.0  # RINGDP_TIMEOUT


@pytest.fixture
def two() -> Iterator[Hosts]:
    """New ones for each test: after a cut, what is left of the connections of one job disturbs the next."""
    with Hosts(2) as hosts:
        yield hosts


class Job(Started):
    """Ranks 0 and 1 on the first host, 2 and 3 on the second."""

    def __init__(self, hosts: Hosts, folder: Path, steps: int, timeout: float = T) -> None:
        self.folder = folder
        words = [sys.executable, str(PROGRAM), "--steps", str(steps)]
        env = environment() | {"RINGDP_TIMEOUT": str(timeout)}
        super().__init__(hosts.ringdp_run(words, PER_HOST, ["--elastic"]), folder, env)

    def said(self, what: str) -> list[dict]:
        """By all ranks: the files are those of equal process numbers, which hosts have."""
        files = (path.read_text().splitlines() for path in self.folder.glob("said-*"))
        return [one for lines in files for one in map(json.loads, lines) if one["what"] == what]

    def wait_for_steps(self) -> None:
        self.wait_for("the first step", lambda: len(self.said("begin")) == RANKS)
        time.sleep(0.5)

    def ranks(self) -> Mapping[int, int]:
        """The processes of those that live, as this machine knows them."""
        found = {}
        for pid in marked_processes(self.mark):
            with contextlib.suppress(OSError):
                if str(PROGRAM).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2]:
                    words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
                    variables = dict(word.partition("=")[::2] for word in words)
                    if "OMPI_COMM_WORLD_RANK" in variables:
                        found[int(variables["OMPI_COMM_WORLD_RANK"])] = pid
        return found

    def send(self, number: signal.Signals, *ranks: int) -> None:
        processes = self.ranks()
        for rank in ranks:
            os.kill(processes[rank], number)


@pytest.mark.parametrize("lost", [(3,), (2,), (2, 3)])
def test_ranks_that_die_on_another_host_are_gone_on_without(
    two: Hosts, tmp_path: Path, lost: tuple[int, ...]
) -> None:
    with Job(two, tmp_path, steps=150) as job:
        job.wait_for_steps()
        job.send(signal.SIGKILL, *lost)
        assert job.end_of_all() == 10, job.output  # with the lost ones' absence told, and all sums right
        left = [rank for rank in range(RANKS) if rank not in lost]
        assert sorted(one["first"] for one in job.said("end")) == left, job.output
        assert all(one["size"] == len(left) and len(one["sums"]) == 150 for one in job.said("end"))
        names = f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
        assert f"going on without {names} (of {RANKS}): {len(left)} left" in job.output
        assert f"ringdp run: {len(lost)} rank{'s' * (len(lost) > 1)} lost" in job.output


def test_a_rank_that_is_stopped_on_another_host_is_killed_there(two: Hosts, tmp_path: Path) -> None:
    with Job(two, tmp_path, steps=150) as job:
        job.wait_for_steps()
        job.send(signal.SIGSTOP, 3)
        assert job.end_of_all() == 10, job.output
        assert re.search(
            r"killing rank 3 \(process \d+\), as the others go on without it: it is stopped", job.output
        )
        assert sorted(one["first"] for one in job.said("end")) == [0, 1, 2], job.output
        assert all(one["size"] == 3 and len(one["sums"]) == 150 for one in job.said("end")), job.output


def test_where_a_link_is_cut_no_rank_goes_on_and_the_job_fails(two: Hosts, tmp_path: Path) -> None:
    """Each side would take the other for lost: two jobs, which both go on, would be worse than none."""
    with Job(two, tmp_path, steps=1_000_000) as job:
        job.wait_for_steps()
        two.cut(1)
        try:
            began = time.monotonic()
            job.wait_for("the end of all ranks", lambda: not job.ranks())
            assert time.monotonic() - began < 4 * T + 15, job.output
            assert "ranks 2, 3 (host host2) do not answer" in job.output
            assert "going on without" not in job.output
        finally:
            two.heal(1)
        assert job.end_of_all() not in (0, 10), job.output
        assert len(job.said("begin")) == RANKS and not job.said("end"), "some have gone on"


def test_where_tcp_gives_up_a_cut_link_one_side_goes_on_at_most(two: Hosts, tmp_path: Path) -> None:
    """Then each side hears that the other is lost."""
    two.give_up_after(5)
    try:
        with Job(two, tmp_path, steps=1_000_000, timeout=2 * T) as job:
            job.wait_for_steps()
            two.cut(1)
            job.wait_for("one side", lambda: "going on without ranks 2, 3 (of 4): 2 left" in job.output)
            time.sleep(4 * T)  # for the other one
            assert len([one for one in job.said("begin") if one["size"] == 2]) == 2, job.output
    finally:
        two.heal(1)
        two.give_up_after(15)
