"""examples/images: alone, on two and three ranks, and with data-loading workers of every start method."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver.environ import environment, mpirun
from driver.limit import run_limited
from driver.phases import ROOT, TESTS

pytest.importorskip("torch")
pytest.importorskip("sklearn")

TRAIN = ROOT / "examples" / "images" / "train.py"
START_METHODS = ("fork", "spawn", "forkserver")
Run = Callable[..., tuple[int | None, str]]


@pytest.fixture(scope="module")
def train(result_of: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`train(ranks, *options)`: the result of a training that went well."""
    return lambda ranks, *options: result_of(ranks, TRAIN, *options)


@pytest.fixture(scope="module")
def two_epochs(train: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return train(2, "--epochs", 2)


def first_loss(result: dict[str, Any]) -> float:
    (line,) = [line for line in result["output"].splitlines() if line.startswith("epoch  1/")]
    return float(line.split("loss ")[1].split()[0])


def test_two_ranks_learn_what_one_learns(train: Callable[..., dict[str, Any]]) -> None:
    two, alone = train(2), train(0)
    assert two["accuracy"] >= 0.97
    assert alone["accuracy"] >= 0.97
    assert "parameters identical on 2 ranks" in two["output"]
    # The same batches from the same weights: rounding alone is different, and has not grown yet.
    assert first_loss(two) == pytest.approx(first_loss(alone), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds(train: Callable[..., dict[str, Any]], seed: int) -> None:
    assert train(2, "--seed", seed)["accuracy"] >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["int8", "powersgd"])
def test_compressed_gradients_reach_the_accuracy_of_float32(
    train: Callable[..., dict[str, Any]], hook: str
) -> None:
    plain, compressed = train(2), train(2, "--hook", hook)
    assert compressed["parameters_sha256"] != plain["parameters_sha256"]  # the hook was there
    assert compressed["accuracy"] >= plain["accuracy"] - 0.005


def test_time_in_exchange_is_shown(two_epochs: dict[str, Any]) -> None:
    assert two_epochs["exchange_ms_per_step"] > 0
    assert 0 < two_epochs["exchange_share"] < 1
    phases = {"reading", "forward and backward", "exchange", "step", "evaluation"}
    assert two_epochs["seconds"].keys() == phases
    assert all(seconds > 0 for seconds in two_epochs["seconds"].values())
    assert "seconds by phase: " in two_epochs["output"]
    lines = [line for line in two_epochs["output"].splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all("samples/s" in line and "ms/step" in line for line in lines)


def test_plain_mpirun_on_three_ranks(tmp_path: Path) -> None:
    file, log = tmp_path / "result.json", tmp_path / "log"
    command = [mpirun(), "-n", "3", sys.executable, str(TRAIN), "--epochs", "2", "--json", str(file)]
    assert run_limited(command, environment(), tmp_path, log, 120).code == 0, log.read_text()
    assert "parameters identical on 3 ranks" in log.read_text()
    assert json.loads(file.read_text())["ranks"] == 3


@pytest.mark.parametrize("method", START_METHODS)
def test_workers_load_the_same_data(
    method: str, train: Callable[..., dict[str, Any]], two_epochs: dict[str, Any]
) -> None:
    result = train(2, "--epochs", 2, "--workers", 2, "--start-method", method)
    assert result["parameters_sha256"] == two_epochs["parameters_sha256"]


def test_workers_may_ask_who_they_are_and_nothing_more(run: Run) -> None:
    code, output = run(2, TESTS / "examples" / "ask_in_workers.py", *START_METHODS)
    assert code == 0, output
    for method in START_METHODS:
        for rank in (0, 1):
            assert f"rank {rank} of 2: 4 answers by {method} are right" in output


def test_ranks_that_differ_are_noticed(run: Run) -> None:
    code, output = run(2, TESTS / "examples" / "drifting.py", "--epochs", 1)
    assert code == 1, output
    assert "PARAMETERS DIFFER between the 2 ranks" in output
    assert "identical" not in output
