"""What the training shows while it runs: one line an epoch, and on a terminal a line that moves with every step."""

import os
import sys
import time
from statistics import fmean

BAR = 20  # characters
CLEAR = "\r\x1b[K"  # back to the beginning of the line, and nothing on it
PAUSE = 0.1  # seconds between two changes of the moving line


class Progress:
    """Loss, speed and time spent in exchange, epoch by epoch; writes only where `shown`."""

    def __init__(self, epochs: int, steps: int, batch_size: int, shown: bool) -> None:
        self._epochs = epochs
        self._steps = steps  # of an epoch
        self._batch_size = batch_size  # of all ranks together
        self._shown = shown
        self._moving = shown and on_terminal()
        self._last_change = 0.0
        # Of each epoch: loss, seconds, seconds in exchange.
        self._finished: list[tuple[float, float, float]] = []

    def step(self, step: int, loss: float, seconds: float, exchange: float) -> None:
        """`step` steps of this epoch took `seconds`, of which `exchange` were spent waiting for other ranks."""
        now = time.monotonic()
        if self._moving and now - self._last_change >= PAUSE:
            self._last_change = now
            done = BAR * step // self._steps
            bar = "#" * done + "." * (BAR - done)
            print(f"{CLEAR}{self._line(step, loss, seconds, exchange)}  {bar}", end="", flush=True)

    def epoch(self, loss: float, seconds: float, exchange: float) -> None:
        """An epoch is done; the figures are averages over the ranks."""
        line = self._line(self._steps, loss, seconds, exchange)
        self._finished.append((loss, seconds, exchange))
        if self._shown:
            print(CLEAR * self._moving + line, flush=True)

    def result(self) -> dict[str, float]:
        """The figures of all epochs but the first, in which everything is started up."""
        timed = self._finished[1:] or self._finished
        seconds, exchange = fmean(e[1] for e in timed), fmean(e[2] for e in timed)
        return {
            "loss": self._finished[-1][0],
            "samples_per_second": self._steps * self._batch_size / seconds,
            "exchange_ms_per_step": 1000 * exchange / self._steps,
            "exchange_share": exchange / seconds,
        }

    def _line(self, steps: int, loss: float, seconds: float, exchange: float) -> str:
        return (
            f"epoch {len(self._finished) + 1:{len(str(self._epochs))}}/{self._epochs}  loss {loss:.4f}  "
            f"{steps * self._batch_size / seconds:7,.0f} samples/s  "
            f"exchange {1000 * exchange / steps:6.2f} ms/step ({100 * exchange / seconds:2.0f} %)"
        )


def on_terminal() -> bool:
    """True if someone watches. mpirun may give its ranks a terminal whatever it writes to; that one has no width."""
    return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0
