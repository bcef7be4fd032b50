"""Some of the jobs that `make soak` draws (drawn.py), and that their judge sees what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults import drawn
from faults.drawn import Draw, Fault, draw
from faults.drawn_run import DrawnJob, Lost, try_job

RANKS = (2, 3)


def first(fits: Callable[[Draw], bool]) -> Draw:
    """The first job that is as wanted: the same each time, until somebody changes how they are drawn."""
    found = next((job for job in (draw(seed, RANKS) for seed in range(100_000)) if fits(job)), None)
    assert found is not None
    return found


def short(kind: str, ranks: int, restarts: bool) -> Draw:
    return first(
        lambda job: (
            (job.restarts, job.ranks) == (restarts, ranks)
            and job.steps < 15
            and [fault.kind for fault in job.faults] == [kind]
        )
    )


def test_a_job_that_begins_again_loses_nothing(tmp_path: Path) -> None:
    done = try_job(short("killed", 2, restarts=True), tmp_path, RANKS)
    assert done["attempts"] == 2 and done["operations"] > 20


@pytest.mark.slow
def test_who_was_stopped_is_named_though_the_others_began_to_leave(tmp_path: Path) -> None:
    """`elastic` shuts ringdp down before it knows that one is lost."""
    assert try_job(short("stopped", 2, restarts=True), tmp_path, RANKS)["attempts"] == 2


def test_ranks_that_differ_hear_of_it_and_go_on(tmp_path: Path) -> None:
    job = short("a mismatch", 3, restarts=False)
    done = try_job(job, tmp_path, RANKS)
    must = sum(len(drawn.operations(job.seed, job.ranks, step)) for step in range(job.steps))
    assert done["operations"] == job.ranks * must


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    right = short("two killed at once", 3, restarts=False)
    job = DrawnJob(right, tmp_path)
    job.run(RANKS)
    job.judge()
    fault = right.faults[0]
    (innocent,) = {0, 1, 2} - {fault.rank, fault.other}
    wrong: dict[str, Fault] = {
        "the launcher's last word": replace(fault, rank=innocent, other=-1),
        "exit code 137": replace(fault, kind="nothing"),
        "exit code 137, not one of": replace(fault, kind="crashed"),
    }
    for text, other in wrong.items():
        job.draw = replace(right, faults=[other])
        with pytest.raises(Lost, match=text):
            job.judge()
    job.draw = right
    said = tmp_path / f"said-{innocent}"
    said.write_text(said.read_text() + '{"what": "wrong", "attempt": 0, "text": "a wrong sum"}\n')
    with pytest.raises(Lost, match="a wrong sum"):
        job.judge()
    (tmp_path / "forgotten").touch()
    said.unlink()
    with pytest.raises(Lost):
        job.judge()


def test_what_nothing_has_happened_to_has_one_right_end() -> None:
    """Another job, or a step less, has other digests."""
    job = replace(draw(5, RANKS), steps=4)
    must = drawn.digests(job)
    assert must == drawn.digests(job)
    assert (
        len({*must, *drawn.digests(replace(job, steps=3)), *drawn.digests(replace(job, seed=6))})
        == 3 * job.ranks
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7000, 7030))
def test_drawn(seed: int, tmp_path: Path) -> None:
    try_job(draw(seed), tmp_path)
