"""What a hook's state keeps for each bucket, for as long as the plan stays."""

from __future__ import annotations

from typing import Generic, TypeVar

from ringdp.torch.comm_hook import GradBucket

K = TypeVar("K")


class Memory(Generic[K]):
    """By bucket. Forgotten when the plan changes: the elements have other places then."""

    def __init__(self) -> None:
        self._plan: int | None = None
        self._kept: dict[int, K] = {}

    def of(self, bucket: GradBucket) -> K | None:
        """What was kept last; None at first and after a change of the plan."""
        return self._kept.get(bucket.index()) if self._plan == bucket.plan() else None

    def keep(self, bucket: GradBucket, value: K) -> None:
        """Keep this for the bucket."""
        if self._plan != bucket.plan():
            self._plan, self._kept = bucket.plan(), {}
        self._kept[bucket.index()] = value
