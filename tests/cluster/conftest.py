"""Running a command within a limit of time."""

from pathlib import Path

import pytest
from cluster.training import Run
from driver.limit import run_limited


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(command, env, limit)`: the exit code (None: ended at the limit) and all that the command wrote."""

    def run(command: list[str], env: dict[str, str], limit: float = 120) -> tuple[int | None, str]:
        log = tmp_path / "log"
        outcome = run_limited(command, env, tmp_path, log, limit)
        return outcome.code, log.read_text(errors="replace")

    return run
