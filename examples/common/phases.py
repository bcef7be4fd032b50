"""Where the time of a training goes: seconds by phase, the exchange of gradients among them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import ringdp.torch as hvd


class Phases:
    """This rank's seconds in each phase: `with phases("forward"): …`. A phase inside another counts for itself alone.

    The phase "exchange" is how long a rank has waited for the others: from its last gradient to the return of
    `backward()`. What is exchanged while `backward()` still computes costs no time, and is not counted.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = {"exchange": 0.0}
        self._running: list[str] = []
        self._since = 0.0
        self._last_gradient = 0.0
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._gradient_arrived)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._book()
        self._running.append(phase)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def backward(self, loss: torch.Tensor) -> None:
        """`loss.backward()`, in a phase."""
        loss.backward()
        waited = time.perf_counter() - self._last_gradient
        self._add("exchange", waited)
        self._add(self._running[-1], -waited)

    def averages(self) -> dict[str, float]:
        """Averages over the ranks. Collective: every rank has had the same phases."""
        return hvd.average_metrics(self.seconds, name="phases")

    def _book(self) -> None:
        now = time.perf_counter()
        if self._running:
            self._add(self._running[-1], now - self._since)
        self._since = now

    def _add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def _gradient_arrived(self, _: object) -> None:
        self._last_gradient = time.perf_counter()


def line(seconds: dict[str, float]) -> str:
    """What `averages` gave, the longest phase first."""
    total = sum(seconds.values())
    phases = sorted(seconds.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{phase} {spent:.2f} ({100 * spent / total:.0f} %)" for phase, spent in phases)
    return f"seconds by phase: {shares}"
