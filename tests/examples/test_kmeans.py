"""examples/numpy: the same clusters on any number of ranks, and as good as scikit-learn's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver.phases import ROOT

pytest.importorskip("sklearn")

KMEANS = ROOT / "examples" / "numpy" / "kmeans.py"
STARTS = 8
Run = Callable[..., tuple[int | None, str]]


@pytest.fixture
def cluster(run: Run, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def cluster(ranks: int, *options: object) -> dict[str, Any]:
        file = tmp_path / "result.json"
        code, output = run(ranks, KMEANS, "--starts", STARTS, "--json", file, *options, limit=150)
        assert code == 0, output
        result = json.loads(file.read_text())
        assert result["ranks"] == max(1, ranks) and result["centres_identical"]
        lines = output.splitlines()
        assert len([line for line in lines if line.startswith("start ")]) == STARTS
        said = (
            f"inertia {result['inertia']:,.1f}, accuracy {result['accuracy']:.4f} on {result['ranks']} rank"
        )
        assert any(line.startswith(said) for line in lines), output
        return result

    return cluster


@pytest.fixture(scope="module")
def reference() -> float:
    """The inertia that scikit-learn ends with."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits

    return float(KMeans(10, n_init=STARTS, random_state=0).fit(load_digits().data).inertia_)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_any_number_of_ranks_finds_the_same(
    seed: int, cluster: Callable[..., dict[str, Any]], reference: float
) -> None:
    alone, two, three = (cluster(ranks, "--seed", seed) for ranks in (0, 2, 3))
    assert alone["centres_sha256"] == two["centres_sha256"] == three["centres_sha256"]
    assert alone["inertia"] == two["inertia"] == three["inertia"] <= 1.005 * reference
    assert alone["accuracy"] == two["accuracy"] == three["accuracy"] >= 0.75
    assert two["seconds_iterating"] > two["seconds_computing"] > 0 and two["speed_up"] > 0


def test_other_blocks_round_otherwise(cluster: Callable[..., dict[str, Any]]) -> None:
    usual, other = cluster(2), cluster(2, "--blocks", 7)
    assert usual["inertia"] == pytest.approx(other["inertia"], rel=1e-9)
    assert usual["accuracy"] == other["accuracy"]
