"""A training in steps of `DistributedOptimizer`, for faults that know of steps, gradients and plans.

    python torch_job.py                          ten steps
    python torch_job.py --do nan-raise,nan-skip  one training after the other, with something wrong on rank 1 in each

What each rank writes: see said.py. The gradients are such that all sums are exact, so it is known what the parameters
must be after each step.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
from said import begin, say, say_error

RANK = 1  # that has something wrong
STEPS, WRONG_IN = 6, 2
NAN = float("nan")
SPOILED = 1984  # of the elements of `weight`: the middle of the bucket, where RINGDP_INJECT puts a NaN


class Training:
    """Three parameters, from 0 on; the gradient of each element on rank r in step s is r + 1 + s, and lr is -1."""

    def __init__(self, sizes=((64, 64), (64,), (64,)), names=("weight", "bias", "scale"), **options) -> None:
        self.params = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
        named = zip(names, self.params, strict=True)
        self.optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(self.params, lr=1.0, maximize=True), named, op=hvd.Sum, **options
        )
        self.wanted = [torch.zeros(size) for size in sizes]
        self.steps = 0

    def loss(self, params=None) -> torch.Tensor:
        return sum(p.sum() for p in (params or self.params)) * (hvd.rank() + 1 + self.steps)

    def step(self, loss=None) -> None:
        """One that goes well, unless the loss is another one."""
        self.optimizer.zero_grad()
        (self.loss() if loss is None else loss).backward()
        self.optimizer.step()
        self.count()

    def count(self) -> None:
        """What all ranks have added."""
        total = sum(rank + 1 + self.steps for rank in range(hvd.size()))
        for wanted in self.wanted:
            wanted += total
        self.steps += 1

    def check(self) -> None:
        for param, wanted in zip(self.params, self.wanted, strict=True):
            assert torch.equal(param.detach(), wanted), (
                f"rank {hvd.rank()}: wrong parameters after {self.steps} steps"
            )

    def with_nan(self) -> torch.Tensor:
        """In element 5 of the second parameter."""
        return self.loss() + (self.params[1][5] * NAN if hvd.rank() == RANK else 0)

    def go_on(self) -> None:
        """As if nothing had been."""
        while self.steps < STEPS:
            self.step()
        self.check()


def caught(kind: type[BaseException], call: Callable[[], object], training: Training) -> None:
    """It must raise this on each rank, and change no parameter."""
    before = [p.detach().clone() for p in training.params]
    say(hvd.rank(), "fault")
    try:
        call()
    except kind as error:
        say_error(hvd.rank(), "caught", error)
    else:
        raise AssertionError(f"rank {hvd.rank()}: no {kind.__name__}")
    same = all(torch.equal(p, b) for p, b in zip(training.params, before, strict=True))
    assert same, f"rank {hvd.rank()}: a step that failed has changed parameters"


def begun(**options) -> Training:
    training = Training(**options)
    while training.steps < WRONG_IN:
        training.step()
    return training


def nan_raise() -> None:
    """Here and below RINGDP_INJECT puts a NaN into the bucket."""
    t = begun(check_finite="raise")
    caught(hvd.NonFiniteError, t.step, t)
    t.go_on()


def nan_skip() -> None:
    t = begun(check_finite="skip")
    t.optimizer.zero_grad()
    t.loss().backward()
    t.optimizer.step()
    t.check()
    assert t.optimizer.skipped_steps == 1
    t.go_on()


def nan_zero() -> None:
    t = begun(check_finite="zero")
    t.wanted[0].view(-1)[SPOILED] -= RANK + 1 + t.steps  # what that rank would have added
    t.step()
    t.go_on()


def scaler() -> None:
    """An overflow on one rank: none of them steps, and all lower the scale."""
    t, scale = begun(), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    for is_overflow in (True, False):
        t.optimizer.zero_grad()
        scale.scale(t.with_nan() if is_overflow else t.loss()).backward()
        scale.step(t.optimizer)
        scale.update()
        if not is_overflow:
            t.count()
        t.check()
        assert scale.get_scale() == 4.0
    t.go_on()


def unstepped() -> None:
    """One rank leaves a step out: the next vote says so, before any parameter changes."""
    t = begun()
    t.optimizer.zero_grad()
    t.loss().backward()
    t.optimizer.zero_grad() if hvd.rank() == RANK else t.optimizer.step()
    t.count()
    caught(hvd.MismatchError, t.step, t)
    hvd.broadcast_parameters(t.params, root_rank=0)
    t.go_on()


def missing_raise() -> None:
    t = begun(missing_gradients="raise")
    used = [t.params[0], t.params[2]] if hvd.rank() == RANK else t.params
    caught(hvd.MissingGradientError, lambda: t.step(t.loss(used)), t)
    t.go_on()


def missing_zero() -> None:
    t = begun()
    t.wanted[1] -= RANK + 1 + t.steps
    t.step(t.loss([t.params[0], t.params[2]] if hvd.rank() == RANK else t.params))
    t.go_on()


def drift() -> None:
    """Looked for in steps 0, 2 and 4."""
    t = begun(check_replicas_every=2)
    t.step()
    if hvd.rank() == RANK:
        t.params[1].data[5] += 1
    t.step()
    caught(hvd.ReplicaError, t.step, t)
    hvd.broadcast_parameters(t.params, root_rank=0)
    t.go_on()


def verify() -> None:
    """RINGDP_INJECT flips a bit of a bucket."""
    t = begun(verify_every=1)
    caught(hvd.VerificationError, t.step, t)
    t.go_on()


def differs(**of_one_rank) -> Callable[[], None]:
    """What the optimizer of one rank was told."""

    def train() -> None:
        t = Training(**(of_one_rank if hvd.rank() == RANK else {}))
        caught(hvd.MismatchError, t.step, t)
        Training().go_on()

    return train


def until_asked() -> None:
    """All save the same."""
    t = Training()
    hvd.on_preempt(lambda: say(hvd.rank(), "saved", step=t.steps, sum=t.params[0].double().sum().item()))
    t.step()
    say(hvd.rank(), "step")
    while True:
        t.step()


DO = {
    "": lambda: Training().go_on(),
    "nan-raise": nan_raise,
    "nan-skip": nan_skip,
    "nan-zero": nan_zero,
    "scaler": scaler,
    "unstepped": unstepped,
    "missing-raise": missing_raise,
    "missing-zero": missing_zero,
    "drift": drift,
    "verify": verify,
    "plan": differs(sizes=((64, 64), (65,), (64,))),
    "swapped": differs(names=("weight", "scale", "bias")),
    "compression": differs(compression=hvd.Compression.fp16),
    "until-asked": until_asked,
}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--do", default="")
    hvd.init()
    torch.set_num_threads(1)
    begin(hvd.rank())
    try:
        for what in p.parse_args().do.split(","):
            DO[what]()
    except BaseException as error:
        say_error(hvd.rank(), "error", error)
        raise
    say(hvd.rank(), "end")


main()
