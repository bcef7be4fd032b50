"""elastic.run where a rank is lost: it cannot go on, says so, and ends the job."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_a_rank_that_does_not_come_to_the_reset(run: Callable[..., tuple[int | None, str]]) -> None:
    began = time.monotonic()
    code, output = run(2, Path(__file__).parent / "lost_rank.py", limit=60)
    assert code not in (0, None), output
    assert time.monotonic() - began < 50
    assert "rank 0: elastic.run goes on from the last commit after HorovodInternalError: a fault" in output
    assert (
        "PeerError: rank 0: elastic.run cannot go on: after HorovodInternalError (a fault) not all of 2 ranks came "
        "to the reset within RINGDP_TIMEOUT=3 s: one is lost, stopped or busy elsewhere."
    ) in output
    assert "ringdp: rank 0 ended by PeerError: ending the job" in output
