"""The options of horovodrun that `ringdp run` does not have, each with what to do instead."""

from __future__ import annotations

_GLOO = "ringdp has one engine, MPI, and no gloo: leave the option out"
_SSH = (
    "write it into ~/.ssh/config, or set mpirun's own variable, in Open MPI 5 PRTE_MCA_plm_ssh_args='-p 2222'"
)
_ELASTIC = (
    "ranks do not join a job that runs: start a fixed number with -n; --elastic goes on without ranks that are lost, "
    "as long as --min-ranks are left, and --restarts K starts a failed job again, from its last commit"
)
_STALL = "ringdp has deadlines instead of a stall check: leave the option out"
_FUSION = "set RINGDP_BUCKET_BYTES to a number of bytes instead"
_TIMELINE = "set RINGDP_TIMELINE to the file of the timeline instead; there are no cycles to mark"
_AUTOTUNE = "ringdp does not tune itself while it runs, so that results repeat: leave the option out"
_CACHE = "a steady step negotiates nothing, so there is no response cache: leave the option out"
_HIERARCHY = "the algorithm is chosen from the placement of the ranks: leave the option out"
_LOG = "redirect the output of `ringdp run` instead; --mpi-args hands options to mpirun that name ranks or write files"

# option: (aliases, what to say)
EXPLANATIONS: dict[tuple[str, ...], str] = {
    ("--check-build", "-cb"): "use `ringdp info`, which prints what was detected",
    ("--start-timeout",): "mpirun has no such limit; put `timeout SECONDS` before `ringdp run`",
    ("--network-interface", "--network-interfaces", "--nics"): (
        "name the interface to MPI, such as --mpi-args='--mca btl_tcp_if_include eth0' (Open MPI) or "
        "--mpi-args='-iface eth0' (MPICH)"
    ),
    ("--output-filename", "--prefix-timestamp", "--prefix-output-with-timestamp"): _LOG,
    ("--log-level", "--log-with-timestamp", "--log-without-timestamp", "--log-hide-timestamp"): (
        "there is no such option; --verbose shows what the launcher does"
    ),
    (
        "--config-file",
    ): "give the options on the command line; options of ringdp itself are RINGDP_* variables",
    ("--ssh-port", "-p"): _SSH,
    ("--ssh-identity-file", "-i"): _SSH,
    ("--disable-cache",): _CACHE,
    ("--cache-capacity",): _CACHE,
    ("--fusion-threshold-mb",): _FUSION,
    ("--cycle-time-ms",): "buckets leave when they are full, there are no cycles: leave the option out",
    ("--hierarchical-allreduce", "--no-hierarchical-allreduce"): _HIERARCHY,
    ("--hierarchical-allgather", "--no-hierarchical-allgather"): _HIERARCHY,
    ("--autotune", "--no-autotune", "--autotune-log-file", "--autotune-warmup-samples"): _AUTOTUNE,
    ("--autotune-steps-per-sample", "--autotune-bayes-opt-max-samples"): _AUTOTUNE,
    ("--autotune-gaussian-process-noise",): _AUTOTUNE,
    ("--min-np", "--min-num-proc", "--max-np", "--max-num-proc"): _ELASTIC,
    ("--slots", "--slots-per-host", "--host-discovery-script", "--elastic-timeout"): _ELASTIC,
    ("--reset-limit", "--blacklist-cooldown-range"): _ELASTIC,
    ("--timeline-filename", "--timeline-mark-cycles", "--no-timeline-mark-cycles"): _TIMELINE,
    ("--stall-check", "--no-stall-check"): _STALL,
    ("--stall-check-warning-time-seconds", "--stall-check-shutdown-time-seconds"): _STALL,
    ("--gloo",): _GLOO,
    ("--gloo-timeout-seconds",): _GLOO,
    ("--mpi",): "ringdp always uses MPI: leave the option out",
    ("--jsrun",): "jsrun is not supported: use `mpirun` or `srun`, or `ringdp run`",
    (
        "--tcp",
    ): "MPI chooses the network; to force TCP give --mpi-args='--mca pml ob1 --mca btl tcp,self' (Open MPI)",
    (
        "--mpi-threads-disable",
        "--no-mpi-threads-disable",
    ): "the thread level is checked by init(): leave the option out",
    ("--binding-args",): "hand the options to mpirun with --mpi-args, such as --mpi-args='--bind-to core'",
    ("--num-nccl-streams",): "there is no such setting: leave the option out",
    ("--thread-affinity",): "ringdp pins no thread of its own: leave the option out",
}
