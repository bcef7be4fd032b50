"""*Fencing*: while the ranks that live come together, a process of this host that does not come in time is killed, so
that it cannot go on later with what was ours (ringdp/recovery.py).

No rank goes on before all that are left behind on its host are dead for sure. Those of other hosts are the matter of
the ranks there. Where none of a host is left nobody knows whether its ranks are dead, or cut off and about to go on by
themselves: of the two sides one goes on at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from ringdp import spares, watch
from ringdp.errors import PeerError

_GONE = 60.0  # seconds for which a stopped process is waited for, unless RINGDP_TIMEOUT is less
_LOOK = 0.05  # seconds between two looks at the ranks of this host
_DIES = 20.0  # seconds that a killed process may take to be gone: the kernel frees its memory first


class NotRecovered(PeerError):
    """Ranks are lost, and the others cannot go on without them: on all of these."""


class Fence:
    """While the ranks that live come together: kills those of this host that do not come.

    Args:
        neighbours: this process's watch, of the generation that ends.
        waited: ranks that are stopped now have been waited for long enough.
        waiting: spares, which hold up all if they are stopped.
    """

    def __init__(self, neighbours: Any, waited: bool, waiting: Sequence[spares.Process] = ()) -> None:
        self._watch = neighbours
        self._spares = waiting
        self._host = spares.Process.mine().host if waiting else ("", 0)
        self._end = watch.seconds_of(watch.TIMEOUT, 600)
        self._gone = min(_GONE, self._end)
        self._began = time.monotonic()
        self._stopped_since: dict[int, float] = {}
        if waited:
            self._stopped_since = {
                one[0]: self._began - self._gone for one in neighbours.neighbours() if one[4]
            }
        self._killed: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name="ringdp-fence", daemon=True)

    def __enter__(self) -> Fence:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._over.wait(_LOOK):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Kill whoever's time is over."""
        for rank, pid, is_dead, can_be_killed, is_stopped, recovers, patience in self._watch.neighbours():
            if not is_stopped:
                self._stopped_since.pop(rank, None)
            if is_dead or not can_be_killed or rank in self._killed:
                continue
            why = ""
            if is_stopped and now - self._stopped_since.setdefault(rank, now) >= self._gone:
                why = f"it is stopped, and was waited for for {self._gone:g} s"
            elif not recovers and now - self._began >= max(self._end, patience):
                why = f"it {'is stopped, and ' * is_stopped}has not come for {now - self._began:.0f} s"
            if why:
                spares.say(f"killing rank {rank} (process {pid}), as the others go on without it: {why}")
                self._killed.add(rank)
                self._watch.kill(rank, 0)
        for spare in self._spares:
            found = spare.seen(self._host)
            if found is not None and found.is_stopped and now - self._began >= self._gone:
                spares.say(
                    f"killing a spare (process {spare.pid}): it is stopped, and the others wait for it"
                )
                spare.kill(self._host)

    def confirm(self, lost: Iterable[int]) -> None:
        """Of ranks that are left behind, those of this host are dead: killed if need be.

        Raises:
            NotRecovered: one cannot be killed.
        """
        here = {one[0]: one for one in self._watch.neighbours()}
        for rank in lost:
            if rank in here and not here[rank][2] and not self._watch.kill(rank, _DIES):
                raise NotRecovered(
                    f"rank {rank} (process {here[rank][1]}) is left behind, but lives and cannot be killed: nobody may "
                    "go on beside it"
                )
