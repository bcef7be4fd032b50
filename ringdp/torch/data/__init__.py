"""Equal work: samplers that deal a dataset out to the ranks, and a report of the imbalance left. See docs/data.md."""

from ringdp.imbalance import Imbalance, imbalance, measured_imbalance
from ringdp.torch.data.batches import BalancedBatchSampler
from ringdp.torch.data.sampler import DistributedSampler

__all__ = [
    "BalancedBatchSampler",
    "DistributedSampler",
    "Imbalance",
    "imbalance",
    "measured_imbalance",
]
