"""Going on without lost ranks: who is killed, and when; process sets under new numbers; what `ringdp run` says."""

import json
import os

import pytest

from ringdp import lost_ranks, recovery
from ringdp.cli import elastic
from ringdp.cli.mpirun import LaunchError, Mpirun
from ringdp.cli.restarts import Ended
from ringdp.errors import InitError, PeerError
from ringdp.fence import Fence, NotRecovered
from ringdp.process_sets import ProcessSet

OPEN_MPI = Mpirun("/bin/mpirun", "openmpi", (5, 0, 11), "on PATH")


class Watch:
    """Of a host with ranks 1 and 2 beside this one."""

    def __init__(self, **rank_1):
        self.one = {
            "is_dead": False,
            "can_be_killed": True,
            "is_stopped": False,
            "recovers": False,
            "patience": 0.0,
        }
        self.one |= rank_1
        self.killed = []
        self.dies = True

    def neighbours(self):
        return [(1, 4711, *self.one.values()), (2, 4712, False, True, False, True, 0.0)]

    def kill(self, rank, seconds):
        self.killed.append(rank)
        return self.dies


@pytest.fixture(autouse=True)
def seconds(monkeypatch):
    monkeypatch.setenv("RINGDP_TIMEOUT", "100")


def killed_after(watch, seconds, waited=False):
    fence = Fence(watch, waited)
    fence.look(fence._began)
    fence.look(fence._began + seconds)
    return watch.killed


def test_a_stopped_rank_has_a_minute(capsys):
    assert killed_after(Watch(is_stopped=True), 59) == []
    assert killed_after(Watch(is_stopped=True), 61) == [1]
    assert (
        "killing rank 1 (process 4711), as the others go on without it: it is stopped"
        in capsys.readouterr().err
    )
    assert killed_after(Watch(is_stopped=True, recovers=True), 61) == [1]  # it was stopped on its way


def test_a_stopped_rank_that_was_waited_for_has_no_more_time():
    assert killed_after(Watch(is_stopped=True), 0.1, waited=True) == [1]


def test_a_rank_that_goes_on_again_has_its_time_anew():
    watch = Watch(is_stopped=True)
    fence = Fence(watch, False)
    fence.look(fence._began)
    watch.one["is_stopped"] = False
    fence.look(fence._began + 50)
    watch.one["is_stopped"] = True
    fence.look(fence._began + 99)
    assert watch.killed == []


def test_a_rank_that_does_not_come_has_the_whole_time_or_its_patience(capsys):
    assert killed_after(Watch(), 99) == []
    assert killed_after(Watch(), 101) == [1]
    assert "it has not come for 101 s" in capsys.readouterr().err
    assert killed_after(Watch(patience=200.0), 101) == []
    assert killed_after(Watch(recovers=True), 1000) == []


def test_nobody_is_killed_whose_process_is_not_known_for_sure():
    assert killed_after(Watch(can_be_killed=False), 1000) == []
    assert killed_after(Watch(is_dead=True), 1000) == []


def test_who_is_left_behind_is_dead_before_others_go_on():
    watch = Watch()
    Fence(watch, False).confirm([1, 7])  # 7: of another host
    assert watch.killed == [1]
    dead = Watch(is_dead=True)
    Fence(dead, False).confirm([1])
    assert dead.killed == []
    watch.dies = False
    with pytest.raises(
        NotRecovered, match=r"rank 1 \(process 4711\) is left behind, but lives and cannot be killed"
    ):
        Fence(watch, False).confirm([1])


def test_nobody_goes_on_beside_one_that_cannot_be_killed(monkeypatch):
    class Everyone:
        def Get_size(self):
            return 3

        def Get_rank(self):
            return 0

    class Before:
        everyone, size, full, processes = Everyone(), 3, 3, ()

    def goes_on(*_):
        raise AssertionError("another generation has begun")

    watch = Watch()
    watch.dies = False
    monkeypatch.setattr(recovery, "_shrink", lambda everyone: everyone)
    monkeypatch.setattr(recovery, "_numbers", lambda *_: {0: 0, 2: 1})
    monkeypatch.setattr(recovery, "_divide", goes_on)
    monkeypatch.setattr("ringdp.watch.end", lambda all_left: None)
    with pytest.raises(NotRecovered, match="rank 1 .* cannot be killed"):
        recovery._come_together(Before(), (None, None), PeerError("lost"), Fence(watch, False))


def test_process_sets_move_with_their_ranks():
    numbers = {0: 0, 2: 1, 3: 2}  # without rank 1
    moved, gone = ProcessSet([0, 3]), ProcessSet([1, 2])
    assert moved.moved(numbers) == [] and moved.ranks == [0, 2]
    assert gone.moved(numbers) == [1] and gone.ranks == [1, 2]


def goes_on(groups, left):
    try:
        recovery._refuse_a_split(left[0], groups, left, PeerError("x"))
    except NotRecovered as error:
        assert "nobody here can know whether they are dead" in str(error)
        return False
    return True


def test_of_two_sides_of_a_cut_link_one_goes_on_at_most():
    """Whoever else dies on them: of all ways to share ranks out to hosts, to cut these off, and to die."""
    for groups in ([0, 0, 2, 2], [0, 1, 2, 2], [0, 1, 1, 3, 3], [0, 0, 2, 0, 2]):
        ranks, hosts = range(len(groups)), sorted(set(groups))
        for cut in range(1, 1 << len(hosts)):
            there = {host for place, host in enumerate(hosts) if cut >> place & 1}
            for dead in range(1 << len(groups)):
                alive = [rank for rank in ranks if not dead >> rank & 1]
                sides = [[r for r in alive if (groups[r] in there) == side] for side in (False, True)]
                assert sum(bool(side) and goes_on(groups, side) for side in sides) <= 1, (groups, sides)


def test_those_that_are_left_of_a_host_know_who_is_dead():
    assert goes_on([0, 0, 0, 0], [3])
    assert goes_on([0, 0, 2, 2], [1, 3])
    assert goes_on([0, 0, 2, 2], [0, 1]) and not goes_on([0, 0, 2, 2], [2, 3])
    assert goes_on([0, 1, 2], [1, 2]) and not goes_on([0, 1, 2], [2])


def test_too_few_ranks(monkeypatch):
    recovery._refuse_too_few(0, 1, [0, 1], PeerError("x"))
    monkeypatch.setenv("RINGDP_MIN_RANKS", "2")
    recovery._refuse_too_few(0, 2, [0, 1], PeerError("x"))
    with pytest.raises(PeerError, match="ranks 0, 1 lost, 1 left: fewer than the 2 of --min-ranks"):
        recovery._refuse_too_few(0, 1, [0, 1], PeerError("x"))


def test_an_mpi_without_ulfm_is_refused(monkeypatch):
    class MPI:
        class Comm:
            pass

    assert recovery.prepare(MPI, None) is None
    monkeypatch.setenv("RINGDP_ELASTIC", "1")
    with pytest.raises(InitError, match="Open MPI 5 with ULFM, started by `ringdp run --elastic`"):
        recovery.prepare(MPI, None)


# --- ringdp run -----------------------------------------------------------------------------------------------------


def test_which_launchers_are_refused():
    elastic.refuse(OPEN_MPI, ["--mca", "pml", "ob1"])
    for other in (Mpirun("/m", "mpich", (5, 0), ""), Mpirun("/m", "openmpi", (4, 1, 4), "")):
        with pytest.raises(LaunchError, match="--elastic needs Open MPI 5 with ULFM.*use --restarts K"):
            elastic.refuse(other, [])
    with pytest.raises(LaunchError, match="asks for pml ucx: leave that out"):
        elastic.refuse(OPEN_MPI, ["--mca", "pml", "ucx"])


def test_what_is_said_of_lost_ranks(tmp_path):
    folder, said = tmp_path / "ringdp-report-x", []
    assert elastic.tell(folder, 0, said.append) == 0 and said == []
    folder.mkdir()
    lines = [
        {"generation": 2, "lost": [1], "of": 4, "left": 3},
        {"generation": 3, "lost": [0, 2], "of": 3, "left": 1},
    ]
    texts = [json.dumps(line) for line in lines]
    (folder / lost_ranks.FILE).write_text("\n".join([*texts, '{"gener']))
    assert elastic.tell(folder, 0, said.append) == 1  # the last one has died, too
    assert "ranks have died, and none has come to the end of the job: exit code 1" in said.pop()
    assert elastic.tell(folder, 137, said.append) == 137
    assert said.pop().startswith("3 ranks lost, 2 recoveries (")
    (folder / lost_ranks.FILE).write_text("\n".join([*texts, '{"done": true}', ""]))
    assert elastic.tell(folder, 0, said.append) == elastic.LOST
    assert said[0].startswith("3 ranks lost, 2 recoveries; the job has come to its end with 1")


def test_what_is_said_of_ranks_that_were_replaced(tmp_path):
    folder, said = tmp_path / "ringdp-report-x", []
    folder.mkdir()
    lines = [{"lost": [1], "of": 3, "left": 3, "joined": 1, "spares": 1}, {"done": True}]
    (folder / lost_ranks.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert elastic.tell(folder, 0, said.append) == elastic.LOST
    assert said[0] == "1 spare died before there was need of it"
    assert said[1].startswith("1 rank lost, 1 replaced, 1 recovery; the job has come to its end with 3")
    (folder / lost_ranks.FILE).write_text('{"spares": 2}\n{"done": true}\n')  # no rank is lost
    said.clear()
    assert elastic.tell(folder, 0, said.append) == 0
    assert said == ["2 spares died before there was need of them"]


def test_a_job_whose_ranks_all_died_has_failed(tmp_path):
    """In the midst of the first recovery, say: mpirun ends with 0."""
    said = []
    (tmp_path / "ringdp-report-x").mkdir()
    assert elastic.tell(tmp_path / "ringdp-report-x", 0, said.append) == 1 and len(said) == 1


def test_a_job_that_has_gone_on_without_ranks_is_not_started_again():
    assert not Ended(elastic.LOST, False).has_failed
    assert Ended(1, False).has_failed


def test_reports_lie_where_ringdp_run_looks():
    told = elastic.variables(2, 0, {})
    assert told == {"RINGDP_ELASTIC": "1", "RINGDP_REPORT_DIR": os.getcwd(), "RINGDP_MIN_RANKS": "2"}
    assert elastic.variables(None, 3, {})["RINGDP_SPARES"] == "3"
    assert elastic.variables(None, 0, {"RINGDP_REPORT_DIR": "/x"})["RINGDP_REPORT_DIR"] == "/x"
