"""examples/reinforcement: learns to balance the pole, with ranks that have different numbers of steps."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from driver.environ import environment
from driver.limit import run_limited
from driver.phases import ROOT

pytest.importorskip("torch")
pytest.importorskip("gymnasium")

TRAIN = ROOT / "examples" / "reinforcement" / "train.py"
SHORT = ("--iterations", 16, "--evaluated", 40)
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def train(result_of: Callable[..., dict[str, Any]]) -> Train:
    """`train(ranks, *options)`: the result of a training that went well."""
    return lambda ranks, *options: result_of(ranks, TRAIN, *options, limit=240)


def test_two_ranks_learn_to_balance(train: Train) -> None:
    two = train(2, *SHORT)
    # Measured: 499.5 to 500 with seeds 0 to 2, and 489 to 500 after all twenty iterations.
    assert two["mean_return"] >= 195
    assert two["seconds"].keys() == {"rollouts", "learning", "exchange", "evaluation"}
    assert all(seconds > 0 for seconds in two["seconds"].values())
    assert "parameters identical on 2 ranks" in two["output"]
    assert f"mean return {two['mean_return']:.1f} over 40 episodes" in two["output"]


def test_one_rank_begins_with_the_same_episodes(train: Train) -> None:
    few = ("--iterations", 2, "--evaluated", 4)
    results = [train(ranks, *few)["output"] for ranks in (0, 2)]
    first = [[line for line in output.splitlines() if line.startswith("iteration 1/2")] for output in results]
    assert first[0] == first[1] != []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_seeds(train: Train, seed: int) -> None:
    assert train(2, "--seed", seed)["mean_return"] >= 195


@pytest.mark.slow
def test_the_same_again_on_three_ranks(train: Train) -> None:
    few = ("--iterations", 4, "--evaluated", 8)
    first, again = train(3, *few), train(3, *few)
    assert first["parameters_sha256"] == again["parameters_sha256"]
    assert first["mean_return"] == again["mean_return"]


@pytest.mark.slow
def test_more_ranks_than_episodes(train: Train) -> None:
    """Some have no steps at all, and count for nothing."""
    result = train(3, "--iterations", 3, "--episodes", 2, "--evaluated", 2)
    assert 1 <= result["mean_return"] <= 500


def test_what_is_missing_is_said(tmp_path: Any) -> None:
    hidden = f"import runpy, sys; sys.modules['gymnasium'] = None; runpy.run_path({str(TRAIN)!r}, run_name='__main__')"
    log = tmp_path / "log"
    assert run_limited([sys.executable, "-c", hidden], environment(), tmp_path, log, 60).code == 1
    assert "this example needs gymnasium: pip install 'gymnasium>=1'" in log.read_text()
