"""Running an example as its user does, within a limit of time."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from driver.environ import environment
from driver.limit import run_limited

Run = Callable[..., tuple[int | None, str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run(ranks, script, *options, limit=…)`: the exit code (None: ended at the limit) and all that it wrote.

    `ranks` 0 is this Python without a launcher; `launching` are options of `ringdp run`.
    """

    def run(
        ranks: int, script: Path, *options: object, limit: float = 120, launching: Sequence[object] = ()
    ) -> tuple[int | None, str]:
        folder = tmp_path_factory.mktemp("run")
        log = folder / "log"
        launcher = ["-m", "ringdp", "run", "-n", str(ranks), *map(str, launching)] if ranks else []
        command = [sys.executable, *launcher, str(script), *map(str, options)]
        outcome = run_limited(command, environment(), folder, log, limit)
        return outcome.code, log.read_text(errors="replace")

    return run


@pytest.fixture(scope="session")
def result_of(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`result_of(ranks, script, *options)`: what a training that went well wrote into its JSON file, and its output."""

    def result_of(ranks: int, script: Path, *options: object, **how: Any) -> dict[str, Any]:
        file = tmp_path_factory.mktemp("result") / "result.json"
        code, output = run(ranks, script, "--json", file, *options, **how)
        assert code == 0, output
        result = {"output": output, **json.loads(file.read_text())}
        assert result["ranks"] == max(1, ranks)
        assert result["parameters_identical"]
        return result

    return result_of
