"""The table of faults: what is done to a job, how it must end, and who must say what.

The rows are those of docs/promises.md. `{rank}` is the rank that has the fault. Times are seconds from the fault
to the end of the job; T is RINGDP_TIMEOUT, which makes every kind of wait end after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

T = 2.0
KILLED, CRASHED = 128 + 9, 128 + 11
DEAD = r"rank {rank} \(host \S+, process {pid}\) is dead"
STOPPED = r"rank {rank} \(host \S+, process {pid}\) is stopped \(state [Tt]"
ABSENT = r"rank {rank} \(host \S+, process {pid}\) is alive \(state [RS]\) and has not come"


@dataclass(frozen=True)
class Case:
    """One job."""

    name: str
    row: int  # of docs/promises.md
    inject: str = ""  # RINGDP_INJECT, without the rank
    options: tuple[str, ...] = ()  # of job.py
    codes: tuple[int, ...] = (1,)  # exit codes that are right
    verdict: str = ""  # what every survivor's recorder says; "": there is no report
    says: tuple[str, ...] = ()  # what must be in the output
    seconds: float = 5.0  # from the fault to the end of the job
    ranks: tuple[int, ...] = (2, 3, 4)
    error: str = ""  # what each survivor's Python gets, if it waits
    stages: tuple[str, ...] = ()  # that `inject` is carried out at
    hardest: str = ""  # of these: in CI, on 3 ranks
    environ: dict[str, str] = field(default_factory=dict)
    slow: bool = False  # takes longer than others
    program: str = "job.py"

    def at(self, stage: str, large: bool) -> Case:
        """As it is tried: at one stage of one operation."""
        where = f"{stage.lower()}-{'large' if large else 'small'}"
        return replace(
            self, name=f"{self.name}-{where}", inject=f"op={11 if large else 10},stage={stage},{self.inject}"
        )


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
         says=("waits in allreduce 'loss'", ABSENT, "in prepare_batch"), seconds=12,
         environ={"RINGDP_REPORT_AFTER": "0.08"}),
    Case("patience", 4, options=("--do", "validate", "--patience", "3"), codes=(0,), seconds=12,
         environ={"RINGDP_TIMEOUT": "1"}),
    Case("never starts", 8, options=("--do", "never"),
         says=(r"local rank (\d, )*{rank}(, \d)* of the \d ranks of host \S+ has not come",), seconds=T + 8,
         environ={"RINGDP_START_TIMEOUT": str(T)}),
)  # fmt: skip


def all_cases() -> list[tuple[Case, int]]:
    """Each with each number of ranks, at each stage."""
    found = []
    for case in CASES:
        for ranks in case.ranks:
            if not case.stages:
                found.append((case, ranks))
            for stage in case.stages:
                found += [
                    (case.at(stage, large), ranks) for large in (False, True) if large or stage != "REDUCE"
                ]
    return found


def few_cases() -> list[tuple[Case, int]]:
    """Each at its hardest stage, on three ranks."""
    return [(case.at(case.hardest, True) if case.stages else case, 3) for case in CASES if not case.slow]
