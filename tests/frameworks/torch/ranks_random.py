"""Random trainings: every rank runs the same random calls, with gradients for other parameters on each.

After every `synchronize()` and `step()` each gradient must be the exact sum of what all ranks have contributed
since it was last dropped, or None if nobody has. Each rank knows what the others contribute: all draw from one seed.
"""

import random

import pytest
import torch
from frameworks.torch.helpers import same_on_all_ranks, wrap

import ringdp.torch as hvd

CALLS = {
    "backward": 10,
    "step": 3,
    "synchronize": 2,
    "zero_grad": 3,
    "zero_in_place": 1,
    "module_zero_grad": 1,
    "freeze": 1,
    "add": 0.3,
    "grad": 0.5,
}


def weights(param):
    """Small: what one window exchanges must be exact in float16 too."""
    return torch.arange(param.numel()) % 11 + 1.0


class Training:
    """An optimizer, and the sums that its gradients must show."""

    def __init__(self, seed):
        self.draw = random.Random(seed)  # the same on all ranks
        sizes = [self.draw.choice([0, 1, 3, 16, 17, 50]) for _ in range(self.draw.randint(1, 7))]
        self.params = [torch.nn.Parameter(torch.zeros(n)) for n in sizes]
        self.weights = [torch.zeros(n) for n in sizes]
        self.sums = [None] * len(sizes)
        self.optimizer = wrap(
            self.params,
            lr=1.0,
            op=hvd.Sum,
            backward_passes_per_step=self.draw.choice([1, 1, 2, 3]),
            bucket_bytes=self.draw.choice([16, 256, 1 << 20]),
        )

    def live(self):
        return [i for i, p in enumerate(self.params) if p.requires_grad]

    def backward(self):
        for rank in range(hvd.size()):
            chosen = self.live()
            if self.draw.random() < 0.4:
                chosen = self.draw.sample(chosen, self.draw.randint(1, len(chosen)))
            factor = self.draw.randint(1, 4)
            self.draw.shuffle(chosen)
            for i in chosen:
                added = factor * weights(self.params[i])
                self.sums[i] = added if self.sums[i] is None else self.sums[i] + added
            if rank == hvd.rank():
                mine = chosen, factor
        chosen, factor = mine
        terms = [(self.params[i] * factor * weights(self.params[i])).sum() for i in chosen]
        sum(terms).backward()

    def synchronize(self):
        self.optimizer.synchronize()
        self.check()

    def step(self):
        self.optimizer.step()
        self.check()
        for i, total in enumerate(self.sums):
            if total is not None:
                self.weights[i] = self.weights[i] - total
        assert all(torch.equal(p.detach(), w) for p, w in zip(self.params, self.weights, strict=True))

    def check(self):
        for p, total in zip(self.params, self.sums, strict=True):
            assert (p.grad is None) == (total is None)
            assert total is None or torch.equal(p.grad, total)

    def zero_grad(self):
        self.optimizer.zero_grad()
        self.sums = [None] * len(self.sums)

    def zero_in_place(self):
        self.optimizer.zero_grad(set_to_none=False)
        self.sums = [None if total is None else torch.zeros_like(total) for total in self.sums]

    def module_zero_grad(self):
        for p in self.params:
            p.grad = None
        self.sums = [None] * len(self.sums)

    def freeze(self):
        live = self.live()
        i = self.draw.randrange(len(self.params))
        if live != [i]:
            self.params[i].requires_grad_(not self.params[i].requires_grad)

    def add(self):
        p = torch.nn.Parameter(torch.zeros(self.draw.choice([1, 20])))
        self.params.append(p)
        self.weights.append(torch.zeros_like(p))
        self.sums.append(None)
        self.optimizer.add_param_group({"params": [p]})

    def grad(self):
        i = self.draw.choice(self.live())
        torch.autograd.grad(self.params[i].sum(), [self.params[i]])


@pytest.mark.parametrize("block", range(6))
def test_random_calls(block):
    for seed in range(10 * block, 10 * block + 10):
        training = Training(seed)
        called = []
        for _ in range(40):
            call = training.draw.choices(list(CALLS), list(CALLS.values()))[0]
            called.append(call)
            try:
                getattr(training, call)()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, after {called}") from error
        training.step()
        assert same_on_all_ranks(training.params)
