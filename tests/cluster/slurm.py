"""A Slurm of one node, whose ports, key and files are its own.

Debian and Ubuntu: apt install slurm-wlm munge libpmix-dev (Slurm's PMIx plugin loads libpmix.so by that name).
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
INTERFACE = {"openmpi": "pmix", "mpich": "pmi2"}  # how the ranks of this MPI find each other under srun

CONFIGURATION = """\
ClusterName=ringdp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
FirstJobId={first}
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """It cannot be had here: why."""


@contextlib.contextmanager
def started() -> Iterator[dict[str, str]]:
    """The environment in which srun reaches it, for as long as it runs.

    Raises:
        NoSlurm: not here.
    """
    if os.getuid() != 0:
        raise NoSlurm("starting a Slurm needs root")
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [p for p in PROGRAMS if not shutil.which(p, path=path)]
    if missing:
        raise NoSlurm(
            f"no {', '.join(missing)} here (Debian, Ubuntu: apt install slurm-wlm munge libpmix-dev)"
        )
    # Not pytest's folder: the path of a socket holds 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        env = os.environ | {"PATH": path, "SLURM_CONF": str(configure(folder))}
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            start_daemons(folder, env, daemons)
            yield env
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(20)


def configure(folder: Path) -> Path:
    for part in ("state", "spool"):
        (folder / part).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    cpus = len(os.sched_getaffinity(0))
    host = socket.gethostname().split(".")[0]
    file = folder / "slurm.conf"
    ports = {"port": free_port(), "node_port": free_port()}
    # MPICH names its shared memory by the job, and would take what another Slurm's job of this number has left.
    first = random.randrange(1, 1 << 20)
    file.write_text(CONFIGURATION.format(host=host, folder=folder, cpus=cpus, first=first, **ports))
    return file


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_daemons(folder: Path, env: dict[str, str], daemons: list[subprocess.Popen[bytes]]) -> None:
    munge = [
        "munged",
        "--foreground",
        "--force",
        f"--socket={folder}/munge.sock",
        f"--key-file={folder}/munge.key",
    ]
    munge += [f"--{what}={folder}/munge.{what[:3]}" for what in ("pid-file", "log-file", "seed-file")]
    with open(folder / "daemons.log", "wb") as log:
        for command, ready in (
            (munge, lambda: (folder / "munge.sock").exists()),
            (["slurmctld", "-D"], lambda: answer(["sinfo", "-h"], env) != ""),
            (["slurmd", "-D"], lambda: answer(["sinfo", "-h", "-o", "%t"], env) == "idle"),
        ):
            program = str(shutil.which(command[0], path=env["PATH"]))
            daemons.append(
                subprocess.Popen(
                    [program, *command[1:]], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )
            deadline = time.monotonic() + 30
            while not ready():
                if time.monotonic() > deadline or daemons[-1].poll() is not None:
                    said = (folder / "daemons.log").read_text(errors="replace")[-1000:]
                    raise NoSlurm(f"{command[0]} cannot be started here: {said.strip()}")
                time.sleep(0.2)


def answer(command: list[str], env: dict[str, str]) -> str:
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    return result.stdout.strip() if result.returncode == 0 else ""
