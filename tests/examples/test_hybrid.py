"""examples/hybrid: on four ranks, on two and alone, the same steps are taken, and the same is learned."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver.phases import ROOT

pytest.importorskip("torch")
pytest.importorskip("sklearn")

FOLDER = ROOT / "examples" / "hybrid"
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
Run = Callable[..., tuple[int | None, str]]


@pytest.fixture
def result(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`result(script, ranks, *options)`: what a run that went well wrote into its JSON file, and its output."""

    def result(script: str, ranks: int, *options: object) -> dict[str, Any]:
        file = tmp_path_factory.mktemp("result") / "result.json"
        code, output = run(ranks, FOLDER / script, "--json", file, *options, limit=150)
        assert code == 0, output
        return {"output": output, **json.loads(file.read_text())}

    return result


def same_losses(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same batches from the same weights: rounding alone is different, and has hardly grown."""
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)


@pytest.mark.parametrize("ranks", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_the_program_of_the_page(run: Run, tmp_path: Path, ranks: int) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "parallel.md").read_text(), re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(program)
    code, output = run(ranks, script)
    assert code == 0, output
    losses = re.findall(rf"mesh\(data={ranks // 2}, model=2\), rank \d: loss ([\d.]+)", output)
    assert len(losses) == ranks and all(float(loss) < 0.5 for loss in losses), output


@pytest.mark.parametrize("seed", SEEDS)
def test_a_transformer_on_a_mesh(result: Callable[..., dict[str, Any]], seed: int) -> None:
    """On other ranks with each seed: the steps are the same."""
    ranks = (4, 2, 0)[seed]
    found = result("train.py", ranks, "--seed", seed)
    assert found["accuracy"] >= 0.93, found["output"]
    assert found["losses"][-1] < 0.1 < 0.5 < found["losses"][0]
    phases = [line for line in found["output"].splitlines() if " %  " in line]
    assert len(phases) == len(found["seconds"]) == 5 and all(s > 0 for s in found["seconds"].values())


def test_the_transformer_takes_the_same_steps_on_every_mesh(result: Callable[..., dict[str, Any]]) -> None:
    alone = result("train.py", 0, "--epochs", 1)
    grid = result("train.py", 4, "--epochs", 1)
    data = result("train.py", 2, "--epochs", 1, "--model", 1)
    assert (alone["mesh"], grid["mesh"], data["mesh"]) == (
        {"data": 1, "model": 1},
        {"data": 2, "model": 2},
        {"data": 2, "model": 1},
    )
    same_losses(alone, grid)
    same_losses(alone, data)
    assert "mesh(data=2, model=2): 9,626 of 15,882 parameters on each rank" in grid["output"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pipeline_of_two_stages(result: Callable[..., dict[str, Any]], seed: int) -> None:
    found = result("pipeline.py", (4, 2, 0)[seed], "--seed", seed)
    assert found["accuracy"] >= 0.93, found["output"]


@pytest.mark.slow
def test_pipelines_take_the_steps_of_one_process(result: Callable[..., dict[str, Any]]) -> None:
    alone = result("pipeline.py", 0, "--epochs", 1)
    for ranks, micro_batches in ((2, 1), (4, 4), (2, 8)):
        found = result("pipeline.py", ranks, "--epochs", 1, "--micro-batches", micro_batches)
        assert found["mesh"] == {"data": ranks // 2, "stage": 2}
        same_losses(alone, found)
        assert len(found["idle"]) == ranks and all(0 < share < 1 for share in found["idle"])
        assert found["output"].count("waiting for the other stage") == ranks
    assert alone["idle"] == [0.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_pytorch_s_own_mesh_over_ringdp(result: Callable[..., dict[str, Any]], seed: int) -> None:
    found = result("dtensor.py", (4, 2, 0)[seed], "--seed", seed)
    assert found["accuracy"] >= 0.9, found["output"]
    assert found["mesh"] == ([2, 2], [1, 2], [1, 1])[seed]


@pytest.mark.slow
def test_that_mesh_takes_the_steps_of_one_process(result: Callable[..., dict[str, Any]]) -> None:
    alone, grid = (result("dtensor.py", ranks, "--epochs", 1) for ranks in (0, 4))
    same_losses(alone, grid)
    assert "rank 0 has 66,826 of 66,826 parameters" in alone["output"]
    assert "rank 0 has 16,901 of 66,826 parameters" in grid["output"]
