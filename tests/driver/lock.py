"""What several processes come to make at once - workers, the ranks of a job - is made by one, and the others wait."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is made if it is not there. The kernel lets go of the lock of a process that has died."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
