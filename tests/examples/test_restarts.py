"""`ringdp run --restarts` where a rank is killed: the training ends with the bits that it has without; and what a
commit holds comes to other numbers of ranks.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).parent / "restarted.py"
RANKS = 3  # with two, a sum has the same bits in any order
KILL = 7  # in the second epoch: an epoch has five batches on three ranks

LIMIT = 240  # seconds of a job; some six on an idle machine

Run = Callable[..., tuple[int | None, str]]


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nobody has killed, and that commits nowhere."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = run(RANKS, SCRIPT, folder, limit=LIMIT)
    assert code == 0, output
    return folder


def same(one: Path, other: Path) -> bool:
    """Parameters, options and the optimizer's state, bit for bit."""
    return equal(torch.load(one), torch.load(other))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return bool(one == other)


def taken(folder: Path, epoch: int) -> list[int]:
    """The samples of an epoch, of all ranks and attempts."""
    lines = [line.split() for file in folder.glob("taken-*") for line in file.read_text().splitlines()]
    return sorted(int(sample) for of, _, *samples in lines if int(of) == epoch for sample in samples)


def test_a_killed_training_ends_with_the_same_bits(run: Run, undisturbed: Path, tmp_path: Path) -> None:
    commits = tmp_path / "commits"
    launching = ["--restarts", 2, "--commit-dir", commits]
    code, output = run(RANKS, SCRIPT, tmp_path, "--kill", KILL, launching=launching, limit=LIMIT)
    assert code == 0, output
    assert re.search(r"ringdp run: the job ended with exit code (137 \(SIGKILL\)|9): restart 1", output)
    assert f"restart 1 (1 of 2 without a new commit) in 0.5 s, from commit {KILL} of {RANKS} ranks" in output
    assert (
        f"ringdp: rank 0: going on from commit {KILL} of {commits}\n" in output
    )  # and no word of other bits
    assert same(tmp_path / "end.pt", undisturbed / "end.pt")
    assert not same(tmp_path / "end.pt", tmp_path / f"at-{KILL}.pt")
    assert not commits.exists()
    for epoch in range(2):
        assert taken(tmp_path, epoch) == list(range(60))


@pytest.fixture(scope="module", params=["elements", pytest.param("parameters", marks=pytest.mark.slow)])
def left_behind(
    run: Run, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, str]:
    """The folder of a sharded training that was killed and not started again, with its commits."""
    folder = tmp_path_factory.mktemp("left")
    launching = ["--restarts", 0, "--commit-dir", folder / "commits"]
    code, output = run(
        RANKS, SCRIPT, folder, "--kill", KILL, "--shard", request.param, launching=launching, limit=LIMIT
    )
    assert code in (137, 9), output  # of MPICH the bare number of the signal
    assert "giving up, as it may not be restarted (--restarts 0)" in output
    names = sorted(path.name.split("-")[1] for path in (folder / "commits").iterdir())
    assert names == [f"{KILL - 1:08d}", f"{KILL:08d}"]
    return folder, request.param


@pytest.fixture
def left(left_behind: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """A copy of it, to be gone on with."""
    shutil.copytree(left_behind[0], tmp_path, dirs_exist_ok=True)
    return tmp_path, left_behind[1]


def test_shards_go_on_with_the_same_bits(run: Run, undisturbed: Path, left: tuple[Path, str]) -> None:
    folder, shard = left
    code, output = run(
        RANKS,
        SCRIPT,
        folder,
        "--shard",
        shard,
        launching=["--restarts", 0, "--commit-dir", folder / "commits"],
        limit=LIMIT,
    )
    assert code == 0, output
    assert (
        f"ringdp run: going on from commit {KILL} of 3 ranks in {folder / 'commits'}; to begin anew, "
        in output
    )
    assert f"ringdp: rank 0: going on from commit {KILL} of {folder / 'commits'}\n" in output
    assert same(folder / "begins.pt", folder / f"at-{KILL}.pt")
    assert same(folder / "end.pt", undisturbed / "end.pt")
    for epoch in range(2):
        assert taken(folder, epoch) == list(range(60))


def test_one_rank_has_the_state_of_all(run: Run, left: tuple[Path, str]) -> None:
    folder, shard = left
    launching = ["--commit-dir", folder / "commits"]
    code, output = run(1, SCRIPT, folder, "--only-resume", "--shard", shard, launching=launching, limit=LIMIT)
    assert code == 0, output
    assert (
        f"going on from commit {KILL} of {folder / 'commits'}, but not bit for bit: ranks (was 3, is 1)"
        in output
    )
    assert same(folder / "begins.pt", folder / f"at-{KILL}.pt")


def test_fewer_ranks_take_the_samples_that_are_left(run: Run, left: tuple[Path, str]) -> None:
    """And a commit with a changed bit is refused: the one before is taken, and one step done again."""
    folder, shard = left
    (newest,) = (folder / "commits").glob(f"commit-{KILL:08d}-*")
    part = newest / "part-1"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    launching = ["--restarts", 0, "--commit-dir", folder / "commits"]
    code, output = run(2, SCRIPT, folder, "--shard", shard, launching=launching, limit=LIMIT)
    assert code == 0, output
    assert f"commit {KILL} is refused: {part}: its payload is not what was written (checksum)" in output
    assert f"ringdp: rank 0: going on from commit {KILL - 1} of" in output
    assert same(folder / "begins.pt", folder / f"at-{KILL - 1}.pt")
    # Three ranks have taken 6 steps of 12 samples, the seventh counted for nothing; what remains goes to two.
    assert taken(folder, 0) == list(range(60))
    steps = [line.split()[1] for file in folder.glob("taken-*") for line in file.read_text().splitlines()]
    assert steps.count(str(KILL)) == 3 + 2
    again = taken(folder, 1)
    assert set(again) == set(range(60)) and len(again) == 60 + 12
