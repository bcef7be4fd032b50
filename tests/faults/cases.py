"""The table of faults: what is done to a job, how it must end, and who must say what.

The rows are those of docs/promises.md; `FILES` has the tests of those that need no job of their own, or several
hosts, or a GPU. `{rank}` is the rank that has the fault, `{pid}` its process. Times are seconds from the fault to the
end of the job; T is RINGDP_TIMEOUT, which makes every kind of wait end after it.
"""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field, replace

T = 2.0
KILLED, CRASHED, STOPPED_BY_TERM, INTERRUPTED = 128 + 9, 128 + 11, 128 + 15, 128 + 2
DEAD = r"rank {rank} \(host \S+, process {pid}\) is dead"
STOPPED = r"rank {rank} \(host \S+, process {pid}\) is stopped \(state [Tt]"
ABSENT = r"rank {rank} \(host \S+, process {pid}\) is alive \(state [RSD]\) and has not come"
NAN = "has nan in the gradient of weight, at flat index 1984"
ALL, CULPRIT = "all ranks", "the rank that has the fault"


@dataclass(frozen=True)
class Caught:
    """An error that ranks get, and get over: the same words on each of them."""

    error: str
    text: str
    who: str = ALL


@dataclass(frozen=True)
class Case:
    """One job."""

    name: str
    row: int  # of docs/promises.md
    program: str = "job.py"
    options: tuple[str, ...] = ()  # of the program
    inject: str = ""  # RINGDP_INJECT, without the rank
    signal: int = 0  # that `ringdp run` gets when all ranks have made a step
    of_launcher: tuple[str, ...] = ()  # options of `ringdp run`
    environ: dict[str, str] = field(default_factory=dict)
    # How it must end.
    codes: tuple[int, ...] = (1,)  # exit codes that are right; after 0 all ranks have come to their end
    verdict: str = ""  # what every survivor's recorder says; "": there is no report
    error: str = ""  # what each survivor's Python gets, if it waits
    caught: tuple[Caught, ...] = ()  # one after the other
    says: tuple[str, ...] = ()  # what must be in the output
    seconds: float = 5.0  # from the fault to the end of a job that ends by it
    also: tuple[int, ...] = ()  # other rows
    # Where it is tried.
    ranks: tuple[int, ...] = (2, 3, 4)
    stages: tuple[str, ...] = ()  # that `inject` is carried out at
    ways: tuple[str, ...] = ()  # of WAYS
    hardest: str = ""  # of these: in CI, on 3 ranks
    slow: bool = False  # takes longer than others: not in CI

    def at(self, stage: str, large: bool) -> Case:
        """As it is tried: at one stage of one operation."""
        where = f"{stage.lower()}-{'large' if large else 'small'}"
        return replace(
            self, name=f"{self.name}-{where}", inject=f"op={11 if large else 10},stage={stage},{self.inject}"
        )

    def by(self, way: str) -> Case:
        """As it is tried: by one of the ways that an operation can take."""
        options, environ = WAYS[way]
        return replace(
            self, name=f"{self.name}-{way}", options=self.options + options, environ=self.environ | environ
        )


# Along with the name; in place, in the memory that the ranks share; as messages.
WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "small": (("--elements", "6"), {}),
    "large": (("--elements", str(3 << 18)), {}),
    "messages": (("--elements", str(3 << 18)), {"RINGDP_SHARED_MEMORY": "off"}),
}


def differs(*texts: str) -> tuple[Caught, ...]:
    return tuple(Caught("MismatchError", f"'grad' differs between ranks.*{text}") for text in texts)


SOON = {"RINGDP_TIMEOUT": str(T)}
CASES = (
    Case("killed", 1, inject="do=kill", codes=(KILLED,), verdict=DEAD, says=(DEAD,), seconds=4, error="PeerError",
         stages=("SUBMIT", "AGREE", "REDUCE", "DONE"), hardest="REDUCE"),
    Case("ended without a word", 1, options=("--do", "die"), codes=(7,), verdict=DEAD, says=(DEAD,), seconds=4),
    Case("killed in a step", 1, inject="step=3,stage=REDUCE,do=kill", program="torch_job.py", codes=(KILLED,),
         verdict=DEAD + r".*; in bucket 0 of plan \d+ \(\w+\) for \S+ s, step 3", says=(DEAD,), seconds=4,
         error="PeerError", ranks=(2, 3)),
    Case("killed while computing", 2, options=("--do", "kill", "--pause", "0.1"), codes=(KILLED,), verdict=DEAD,
         says=(DEAD,), seconds=4),
    Case("stopped", 3, inject="do=stop", verdict=STOPPED, says=(STOPPED,), seconds=T + 1.5, error="DeadlineError",
         stages=("SUBMIT", "AGREE", "REDUCE"), hardest="REDUCE", environ=SOON),
    Case("stopped in Python", 3, options=("--do", "stop"), verdict=STOPPED, says=(STOPPED,), seconds=T + 1.5,
         error="DeadlineError", environ=SOON),
    Case("stopped, and others have patience", 3, options=("--do", "stop", "--patience", "60"), verdict=STOPPED,
         says=(STOPPED,), seconds=T + 1.5, error="DeadlineError", environ=SOON),
    # Without RINGDP_TIMEOUT the end comes after 60 s for those gone alone: a report asks for it sooner.
    Case("stopped by default", 3, options=("--do", "stop"), verdict=STOPPED, says=(STOPPED,), seconds=64,
         error="DeadlineError", ranks=(2,), slow=True),
    Case("asleep", 4, options=("--do", "sleep"), verdict=ABSENT, says=(ABSENT, "in prepare_batch", "allreduce 'loss'"),
         seconds=T + 1.5, error="DeadlineError", environ=SOON),
    Case("spinning", 4, options=("--do", "spin"), verdict=ABSENT, says=(ABSENT, "in spin_in_python"), seconds=T + 1.5,
         error="DeadlineError", environ=SOON),
    Case("crashed", 5, inject="do=segv", codes=(CRASHED,), verdict=r"rank {rank} .* is dead \(signal 11, Segmentation",
         says=(r"rank {rank} .* is dead \(signal 11",), seconds=4, error="PeerError",
         stages=("SUBMIT", "AGREE", "REDUCE"), hardest="REDUCE"),
    Case("an exception", 6, options=("--do", "raise"),
         verdict=r"rank {rank} .* was ended by ValueError: the data is broken",
         says=("ValueError: the data is broken", "Traceback"), seconds=1.0),
    Case("an exception in the core", 6, inject="do=raise", verdict=r"rank {rank} .* was ended by InjectedError",
         says=("InjectedError: RINGDP_INJECT",), seconds=1.0, stages=("SUBMIT",), hardest="SUBMIT"),
    Case("leaves early", 7, options=("--do", "leave"), says=("rank {rank} has shut ringdp down",), seconds=4,
         error="PeerError"),
    Case("exits early", 7, options=("--do", "exit"), codes=(1, 3), says=("rank {rank} has shut ringdp down",),
         seconds=4, error="PeerError"),
    Case("late, and reported five times", 4, options=("--do", "late", "--patience", "3"), codes=(0,),
         says=("waits in allreduce 'loss'", ABSENT, "in prepare_batch"),
         environ={"RINGDP_REPORT_AFTER": "0.08"}),
    Case("patience", 4, options=("--do", "validate", "--patience", "3"), codes=(0,),
         environ={"RINGDP_TIMEOUT": "1"}),
    Case("never starts", 8, options=("--do", "never"),
         says=(r"local rank (\d, )*{rank}(, \d)* of the \d ranks of host \S+ has not come",), seconds=T + 8,
         environ={"RINGDP_START_TIMEOUT": str(T)}),
    Case("shapes", 9, "differ_job.py", ("--do", "count,shape"), codes=(0,), ways=tuple(WAYS), hardest="messages",
         caught=differs(r"rank {rank}: allreduce of float32\[\d+\]", r"rank {rank}: allreduce of float32\[\d+, 2\]")),
    Case("plans", 9, "torch_job.py", ("--do", "plan,compression,swapped"), codes=(0,), ranks=(2, 3), also=(11, 12),
         caught=tuple(Caught("MismatchError", f"differs between ranks; nothing was exchanged:.*rank {{rank}}: {text}")
                      for text in (r"bias: float32\[65\]", "options: .*compression fp16", r"scale: float32\[64\]"))),
    Case("dtypes", 10, "differ_job.py", ("--do", "dtype"), codes=(0,), ways=tuple(WAYS), hardest="messages",
         caught=differs(r"rank {rank}: allreduce of int32\[")),
    Case("operations", 11, "differ_job.py", ("--do", "op,average,prescale,postscale,root"), codes=(0,),
         ways=tuple(WAYS), hardest="messages",
         caught=differs("rank {rank}: .*op Max", "rank {rank}: .*op Average", r"rank {rank}: .*prescale_factor 0\.5",
                        r"rank {rank}: .*postscale_factor 0\.5", "rank {rank}: .*root_rank 1")),
    Case("swapped", 12, "differ_job.py", ("--do", "swapped"), codes=(0,), ways=tuple(WAYS), hardest="messages"),
    Case("kinds", 13, "differ_job.py", ("--do", "kind"), codes=(0,), ways=tuple(WAYS), hardest="messages",
         caught=differs(r"rank {rank}: allgather of float32\[")),
    Case("a name twice", 14, "differ_job.py", ("--do", "twice"), codes=(0,), ways=tuple(WAYS), hardest="large",
         caught=(Caught("DuplicateNameError", "'grad'.*still in flight", CULPRIT),)),
    Case("no gradient", 14, "torch_job.py", ("--do", "missing-raise,missing-zero"), codes=(0,), ranks=(2, 3),
         says=("step 2: rank {rank} has no gradient for bias, which other ranks have. They count as zeros",),
         caught=(Caught("MissingGradientError", "step 2: rank {rank} has no gradient for bias, which other"),)),
    # Three trainings of six steps; the second has one that is skipped, and counts.
    Case("not finite", 16, "torch_job.py", ("--do", "nan-raise,nan-skip,nan-zero"), codes=(0,),
         inject="step=2,do=nan;rank=1,step=8,do=nan;rank=1,step=15,do=nan",
         says=(f"step 2: rank {{rank}} {NAN}: no rank takes this step", f"rank {{rank}} {NAN}: zeros were exchanged"),
         caught=(Caught("NonFiniteError", f"step 2: rank {{rank}} {NAN}"),)),
    Case("skipped on one rank", 17, "torch_job.py", ("--do", "scaler,unstepped"), codes=(0,), ranks=(2, 3),
         caught=(Caught("MismatchError", r"differ in step \(2 to 3\): rank {rank} at 2;.*No parameter was"),)),
    Case("flipped on the way", 18, inject="op=9,stage=REDUCE,do=flip", error="ChecksumError",
         verdict=r"rank \d .* was ended by ChecksumError: rank \d: allreduce 'gradients' failed: a message from rank "
                 r"\d to rank {rank} was damaged on its way",
         environ={"RINGDP_CHECKSUM": "1", "RINGDP_SHARED_MEMORY": "off"}, says=("to rank {rank} was damaged",)),
    Case("flipped in a result", 19, "torch_job.py", ("--do", "verify"), "step=2,stage=DONE,do=flip", codes=(0,),
         ranks=(3, 4), caught=(Caught("VerificationError", "bits on rank {rank} are not those of the others"),)),
    # The lowest bit of 4 counts in a sum of 7, and is lost in one of 12.
    Case("flipped before a sum", 19, "torch_job.py", ("--do", "verify"), "step=2,stage=SUBMIT,do=flip", codes=(0,),
         ranks=(2,), slow=True, caught=(Caught("VerificationError", "a second time .* came out otherwise"),)),
    Case("replicas drift", 20, "torch_job.py", ("--do", "drift"), codes=(0,), ranks=(3, 4),
         caught=(Caught("ReplicaError", "step 4: the parameters of rank {rank} differ .* differs is bias"),)),
    Case("no memory", 23, options=("--do", "lack-memory"),
         verdict=r"rank {rank} .* was ended by \w*MemoryError: Unable to allocate", seconds=1.0),
    Case("no shared memory", 23, options=("--do", "lack-shared-memory"), codes=(0,),
         says=(r"rank {rank}: \d+ bytes of shared memory wanted, \d+ bytes free",)),
    Case("asked to end", 24, options=("--do", "until-asked", "--steps", "1000000"), signal=signal.SIGTERM,
         codes=(STOPPED_BY_TERM,), says=("asking the ranks to stop after this step",)),
    Case("asked to end while training", 24, "torch_job.py", ("--do", "until-asked"), signal=signal.SIGTERM,
         codes=(STOPPED_BY_TERM,), says=("to stop after this step", "all ranks stop after .*; asked: .* by SIGUSR1"),
         ranks=(2, 3)),
    Case("Ctrl-C in collectives", 24, options=("--steps", "1000000"), signal=signal.SIGINT, codes=(INTERRUPTED,)),
    Case("Ctrl-C while waiting", 24, options=("--do", "sleep", "--step", "1"), signal=signal.SIGINT,
         codes=(INTERRUPTED,)),
    Case("calls outside of a job", 25, options=("--do", "outside"), codes=(0,),
         caught=(Caught("NotInitializedError", r"ringdp\.init\(\) first", CULPRIT),) * 2),
    Case("calls in a child", 25, options=("--do", "fork"), codes=(0,),
         caught=(Caught("NotInitializedError", "is a child of rank {rank}", CULPRIT),)),
    Case("restarted", 27, "restart_job.py", of_launcher=("--restarts", "2"), codes=(0,),
         says=(r"exit code 137 \(SIGKILL\): restart 1", "going on from commit [45]")),
)  # fmt: skip

# Beside those above, and for the rows that have none there.
FILES: dict[int, tuple[str, ...]] = {
    8: ("tests/cluster/test_hosts.py",),
    9: (
        "tests/ranks/test_errors.py",
        "tests/ranks/test_identity.py",
        "tests/frameworks/torch/ranks_agreement.py",
    ),
    10: ("tests/ranks/test_identity.py",),
    11: ("tests/ranks/test_identity.py", "tests/frameworks/torch/ranks_exchange_options.py"),
    12: ("tests/ranks/test_identity.py",),
    13: ("tests/ranks/test_identity.py",),
    14: ("tests/frameworks/torch/ranks_check_missing.py",),
    15: ("tests/unit/test_header.py", "tests/unit/test_engine_local.py"),
    16: ("tests/frameworks/torch/ranks_check_finite.py",),
    17: ("tests/frameworks/torch/ranks_scaler.py", "tests/frameworks/torch/ranks_check_missing.py"),
    18: ("tests/unit/test_checksums.py",),
    19: ("tests/frameworks/torch/ranks_check_replicas.py",),
    20: ("tests/frameworks/torch/ranks_check_replicas.py",),
    21: ("tests/faults/test_slow.py", "tests/unit/test_lateness.py"),
    22: ("tests/cluster/test_faults.py",),
    24: ("tests/faults/test_ends.py", "tests/frameworks/torch/ranks_stop.py"),
    25: ("tests/faults/test_not_initialized.py", "tests/unit/test_cli_launch.py"),
    26: ("tests/gpu/test_gpu.py", "tests/gpu/test_launches.py"),
    27: ("tests/unit/test_cli_restarts.py", "tests/frameworks/torch/test_commits.py"),
}


def all_cases() -> list[tuple[Case, int]]:
    """Each with each number of ranks, at each stage, by each way."""
    found = []
    for case in CASES:
        for ranks in case.ranks:
            if not case.stages and not case.ways:
                found.append((case, ranks))
            for stage in case.stages:
                found += [
                    (case.at(stage, large), ranks) for large in (False, True) if large or stage != "REDUCE"
                ]
            found += [(case.by(way), ranks) for way in case.ways]
    return found


def hardest_cases() -> list[tuple[Case, int]]:
    """Each at its hardest stage, or by the hardest way, on three ranks."""
    found = []
    for case in CASES:
        if case.stages:
            case = case.at(case.hardest, True)
        elif case.ways:
            case = case.by(case.hardest)
        if not case.slow:
            found.append((case, 3))
    return found


def some_cases(seed: str, most: int = 6) -> list[tuple[Case, int]]:
    """Some of the others, by chance; the same for the same seed."""
    rest = [one for one in all_cases() if one not in hardest_cases() and not one[0].slow]
    return random.Random(seed).sample(rest, most)
