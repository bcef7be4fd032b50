"""How each kind of object in a `TorchState` is saved, restored, sent, and written to a folder of commits."""

from __future__ import annotations

import copy
from typing import Any

from ringdp.state import allgather_object, broadcast_object
from ringdp.torch.state import broadcast_optimizer_state, broadcast_parameters, put_state, state_of


class StateHandler:
    """How one kind of object is saved, restored and sent.

    What `save` keeps as `self._saved` is what is written of it where there is a folder; a handler that keeps nothing
    there overrides `committed` and `put_committed`.
    """

    def __init__(self, value: Any) -> None:
        self.set_value(value)

    def set_value(self, value: Any) -> None:
        """Handle this object from now on."""
        self.value = value
        self.save()

    def save(self) -> None:
        """Copy its state: into new memory, as the copies of before may be needed again."""
        self._saved = copy.deepcopy(self.value.state_dict())

    def restore(self) -> None:
        """Bring the copy back."""
        self.value.load_state_dict(copy.deepcopy(self._saved))

    def sync(self) -> None:
        """Give every rank rank 0's state, and keep a copy."""
        self.value.load_state_dict(broadcast_object(self.value.state_dict()))
        self.save()

    def reset(self) -> None:
        """ringdp was initialised again."""

    def copies(self) -> dict[str, Any]:
        """What `save` has made."""
        return {name: value for name, value in vars(self).items() if name != "value"}

    def put_copies(self, copies: dict[str, Any]) -> None:
        """`restore` is to bring these back."""
        vars(self).update(copies)

    # --- commits in a folder ---

    def committed(self) -> Any:
        """What was saved last, and all ranks have alike: written by one rank. It does not change any more."""
        return self._saved

    def put_committed(self, committed: Any) -> None:
        """Go on from there. On all ranks alike."""
        self._saved = committed
        self.restore()

    def own(self) -> Any:
        """What this rank has for itself, written by each; it does not change any more."""
        return None

    def fits(self, own: Any) -> bool:
        """`own`, of the rank that had this one's number, is all that this one needs of what ranks had."""
        return True

    def take_own(self, own: Any) -> None:
        """After `put_committed`: `own` of one of the ranks that committed. For each of them; then `own_taken`."""

    def own_taken(self) -> None:
        """All have been taken."""

    def put_own(self, own: Any) -> None:
        """After `put_committed`, where it `fits` on all ranks: `own` of the rank that had this one's number."""


class ModelStateHandler(StateHandler):
    """A torch.nn.Module, buffers included."""

    def sync(self) -> None:
        broadcast_parameters(self.value.state_dict(), root_rank=0)
        self.save()


class OptimizerStateHandler(StateHandler):
    """A torch.optim.Optimizer. Its state keeps its dtypes, which `load_state_dict` would cast to the parameters'."""

    def save(self) -> None:
        self._saved = copy.deepcopy(state_of(self.value))

    def restore(self) -> None:
        put_state(self.value, copy.deepcopy(self._saved))

    def sync(self) -> None:
        broadcast_optimizer_state(self.value, root_rank=0)
        self.save()

    def reset(self) -> None:
        """Ranks fail at different places: what each has of a window, and its count of steps, is forgotten."""
        exchange = getattr(self.value, "_exchange", None)
        if exchange is not None:
            exchange.start_over()
        self.value.zero_grad()

    def committed(self) -> Any:
        """The order in which gradients come decides what is added in which order."""
        exchange = getattr(self.value, "_exchange", None)
        return {"saved": self._saved, "order": None if exchange is None else exchange.plan_order()}

    def put_committed(self, committed: Any) -> None:
        super().put_committed(committed["saved"])
        exchange = getattr(self.value, "_exchange", None)
        if exchange is not None and committed["order"] is not None:
            exchange.plan_again(committed["order"])


class SamplerStateHandler(StateHandler):
    """An `ElasticSampler`: rank 0's progress, and what all ranks have recorded one by one."""

    def sync(self) -> None:
        of_rank = allgather_object(self.value.state_dict())
        state = dict(of_rank[0])
        recorded = [s.get("processed_indices", ()) for s in of_rank if s["epoch"] == state["epoch"]]
        if any(recorded):
            state["processed_indices"] = set().union(*recorded)
        self.value.load_state_dict(state)
        self.save()

    def reset(self) -> None:
        self.value.reset()

    def committed(self) -> Any:
        return {key: self._saved[key] for key in ("epoch", "processed_num")}

    def own(self) -> Any:
        return {"recorded": sorted(self._saved.get("processed_indices", ())), "dealt": self.value.dealt()}

    def fits(self, own: Any) -> bool:
        return not own["recorded"]

    def put_committed(self, committed: Any) -> None:
        super().put_committed(committed)
        self._recorded: set[int] = set()

    def take_own(self, own: Any) -> None:
        self._recorded.update(own["recorded"])

    def own_taken(self) -> None:
        if self._recorded:
            self.value.load_state_dict({**self._saved, "processed_indices": self._recorded})
            self.save()

    def put_own(self, own: Any) -> None:
        self.value.deal_again(own["dealt"])
