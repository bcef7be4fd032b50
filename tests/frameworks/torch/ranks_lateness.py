"""Who comes last to the buckets of an optimizer."""

import time

import pytest
import torch
from frameworks.torch.helpers import network

import ringdp
import ringdp.torch as hvd


@pytest.mark.host_only
def test_a_rank_that_loads_its_batches_slowly():
    if hvd.size() < 2:
        pytest.skip("one rank is not last")
    model = network(0)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=256)
    slow = hvd.size() - 1
    for _ in range(12):
        if hvd.rank() == slow:
            time.sleep(0.05)
        optimizer.zero_grad()
        model(torch.ones(2, 1, 8, 8)).sum().backward()
        optimizer.step()
    figure = ringdp.stragglers(20)
    assert figure.operations == 20 and figure.ranks == list(range(hvd.size()))
    assert figure.slowest == slow and figure.last[slow] >= 18 and 0.03 < figure.behind[slow] < 0.5, figure
    with pytest.raises(hvd.UsageError, match="1 to 4096 operations, not 0"):
        ringdp.stragglers(0)
