"""examples/text/train.py whose last rank dies after 50 steps, the first time that the job runs."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "text"))

import train

import ringdp.torch as hvd

sequences = train.sequences


def sequences_or_death(training: Any, step: int, args: Any) -> Any:
    if step == 50 and os.environ["RINGDP_RESTART"] == "0" and hvd.rank() == hvd.size() - 1:
        print(f"rank {hvd.rank()} dies after step {step}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return sequences(training, step, args)


if __name__ == "__main__":
    train.sequences = sequences_or_death
    sys.exit(train.main())
