"""The constants of the published run, frozen: Horovod on all of Summit, 0.93 ± 0.02 at 27,600 GPUs.

J. Romero et al., "Accelerating Collective Communication in Data Parallel Training across Deep Learning Frameworks",
NSDI 2022; the same run: N. Laanait et al., "Exascale Deep Learning for Scientific Inverse Problems", arXiv:1909.11150.

Each constant says where it comes from:

published   in a text that was at hand when this was written
recalled    published, but the text was not at hand: from memory, not looked up again
assumed     not published; the reason is given
fitted      chosen so that the published result comes out. There is none.

Nothing here may be changed to make one of the two results better: tests/unit/test_plan_scale.py has them by value.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringdp.plan.cluster import Cluster, Link
from ringdp.plan.step import Negotiation, Step, negotiated, planned
from ringdp.plan.workload import Workload

RANKS = 27_600
EFFICIENCY, TOLERANCE = 0.93, 0.02  # published: abstract of Romero et al.


@dataclass(frozen=True)
class Constant:
    value: float
    unit: str
    kind: str
    source: str


CONSTANTS = {
    # --- Summit ---
    "ranks a host": Constant(
        6, "GPUs", "published", "4,608 hosts with six V100 each (Atchley, Summit overview, 2018)"
    ),
    "bandwidth between hosts": Constant(
        23e9, "B/s", "recalled", "dual-rail EDR InfiniBand, 2 x 12.5 GB/s raw (published), 23 GB/s usable"
    ),
    "bandwidth inside": Constant(
        32e9,
        "B/s",
        "published",
        "the slowest hop in a host: X-Bus between its sockets, 64 GB/s both ways together (WikiChip, Summit)",
    ),
    "latency between hosts": Constant(
        5e-6,
        "s",
        "assumed",
        "one GPU-to-GPU message with its software; some MPI figures are 1 to 2 us without",
    ),
    "latency inside": Constant(3e-6, "s", "assumed", "a message between two GPUs of a host"),
    "control latency": Constant(
        5e-6,
        "s",
        "assumed",
        "a few words between two hosts from CPU memory, busy cores and software included",
    ),
    "arithmetic": Constant(
        300e9, "B/s", "published", "a V100's 900 GB/s of memory (Atchley), shared by two reads and a write"
    ),
    "spread of the ranks": Constant(
        0.08 / 5.396,
        "of a step",
        "published",
        "8 % average variation of the same work on equal GPUs, Summit's among them (Sinha et al., SC22); read as the "
        "whiskers of a box plot, 5.396 standard deviations of a normal distribution apart (recalled)",
    ),
    # --- the workload, STEMDL: a fully convolutional DenseNet ---
    "parameters": Constant(220e6, "", "recalled", "Laanait et al."),
    "bytes of a gradient": Constant(
        2, "B", "assumed", "FP16 training (published); 4 is in the table of assumptions"
    ),
    "gradient tensors": Constant(440, "", "assumed", "equal, ready at equal distances"),
    "step of one GPU": Constant(
        0.65,
        "s",
        "assumed",
        "39 TFLOP (recalled, unsure) at 60 TFLOP/s (published: 1.54 EFLOP/s / 27,600 / 0.93); a third is forward",
    ),
    # --- Horovod ---
    "cycle time": Constant(5e-3, "s", "published", "Horovod's default until 0.21 (its release notes, #2468)"),
    "fusion buffer": Constant(64 << 20, "B", "published", "as above; the groups are taken to be as large"),
    "bit vectors a cycle": Constant(
        1, "", "published", "one AND over all ranks (horovod/common/response_cache.cc)"
    ),
    "copies of a buffer": Constant(
        2, "", "published", "in and out (Horovod, tensor fusion), at 450 GB/s: 900 / 2"
    ),
}


def _value(name: str) -> float:
    return CONSTANTS[name].value


CLUSTER = Cluster(
    name="Summit",
    ranks_per_host=int(_value("ranks a host")),
    inside=Link(_value("latency inside"), _value("bandwidth inside")),
    between=Link(_value("latency between hosts"), _value("bandwidth between hosts")),
    control=_value("control latency"),
    arithmetic=_value("arithmetic"),
    spread=_value("spread of the ranks"),
)
WORKLOAD = Workload.even(
    "STEMDL",
    compute=_value("step of one GPU"),
    parameters=int(_value("parameters")),
    element_bytes=int(_value("bytes of a gradient")),
    tensors=int(_value("gradient tensors")),
)
HOROVOD = Negotiation(
    cycle=_value("cycle time"), fusion_bytes=int(_value("fusion buffer")), copy_bandwidth=450e9
)


def compare(ranks: int) -> tuple[Step, Step]:
    """(Horovod, ringdp): steps of the same workload on the same cluster."""
    return negotiated(CLUSTER, WORKLOAD, ranks, HOROVOD), planned(CLUSTER, WORKLOAD, ranks)
