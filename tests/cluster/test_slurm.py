"""`srun` on a one-node Slurm that is started for these tests."""

import sys
from collections.abc import Iterator

import pytest
from cluster.slurm import INTERFACE, NoSlurm, started
from cluster.training import TRAIN, Run, check_training
from driver.phases import mpi_family

RANKS = 2


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which srun reaches the Slurm of these tests."""
    try:
        with started() as env:
            yield env
    except NoSlurm as reason:
        pytest.skip(str(reason))


def srun(interface: str) -> list[str]:
    return ["srun", f"--mpi={interface}", "-n", str(RANKS), "--overcommit", "--time=3", sys.executable]


def test_srun_trains(slurm: dict[str, str], run: Run) -> None:
    pytest.importorskip("torch")
    interface = INTERFACE[mpi_family()]
    code, output = run(["srun", f"--mpi={interface}", "true"], slurm, limit=60)
    if code != 0:
        pytest.skip(f"this Slurm has no working --mpi={interface} (apt install libpmix-dev): {output[-300:]}")
    code, output = run([*srun(interface), str(TRAIN)], slurm)
    assert code == 0, output
    check_training(output, RANKS)


def test_srun_without_the_interface_is_refused(slurm: dict[str, str], run: Run) -> None:
    code, output = run([*srun("none"), "-c", "import ringdp; ringdp.init(); print('went', 'on')"], slurm)
    assert code not in (0, None), output
    assert "went on" not in output
    assert "srun started" in output
    assert "srun --mpi=pmix" in output
