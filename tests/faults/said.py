"""What a rank of a job writes down about itself, for whoever has started the job: lines of JSON in `said-RANK`, in the
working directory. Each has what happened, and when.
"""

import json
import os
import time


def say(rank: int, what: str, **more: object) -> None:
    """`what`: begin, with the process id; fault; caught, an error that the job gets over; error, one that it does not;
    step, the first one that is made; saved; end."""
    with open(f"said-{rank}", "a") as file:
        print(json.dumps({"what": what, "time": time.time(), **more}), file=file, flush=True)


def begin(rank: int) -> None:
    say(rank, "begin", pid=os.getpid())


def say_error(rank: int, what: str, error: BaseException) -> None:
    say(rank, what, type=type(error).__name__, text=str(error))
