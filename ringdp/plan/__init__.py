"""At scale on paper: how long a bucket and a step would take on a described cluster, up to 100,000 ranks.

ringdp's own schedules are executed in virtual time (csrc/collectives/timing.h); nothing runs on a cluster, no MPI is
needed. `python -m ringdp.plan --help` has examples; docs/scale.md says what is modelled and what is not.
"""

from ringdp.plan.cluster import Cluster, Link
from ringdp.plan.exchange import Exchange, allreduce, fastest
from ringdp.plan.step import Negotiation, Step, negotiated, planned
from ringdp.plan.workload import Bucket, Workload

__all__ = [
    "Bucket",
    "Cluster",
    "Exchange",
    "Link",
    "Negotiation",
    "Step",
    "Workload",
    "allreduce",
    "fastest",
    "negotiated",
    "planned",
]
