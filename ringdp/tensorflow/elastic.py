"""Horovod's elastic interface: commit and restore in memory. docs/elastic.md says what is there and what is not.

state = hvd.elastic.TensorFlowKerasState(model, optimizer, epoch=0, batch=0)

@hvd.elastic.run
def train(state):
    for state.epoch in range(state.epoch, epochs):
        ...
        state.commit()

train(state)
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ringdp import elastic as _elastic
from ringdp import world
from ringdp.commits import generators
from ringdp.commits.kept import Payloads
from ringdp.commits.loading import Payload
from ringdp.elastic import HostUpdateResult, ObjectState, State
from ringdp.errors import HorovodInternalError, HostsUpdatedInterrupt, UsageError
from ringdp.state import broadcast_object
from ringdp.tensorflow.graphs import original_error
from ringdp.tensorflow.state import broadcast_variables


def run(func: Callable[..., Any] | None = None, *, reset_limit: int = _elastic.RESET_LIMIT) -> Any:
    """Decorator: `func(state, ...)` goes on from the last commit when an exchange fails.

    As `ringdp.torch.elastic.run`; and an exchange that fails inside `tf.function`, for which TensorFlow raises an error
    of its own, counts as what it is.

    Args:
        func: takes a `State` first, and is called alike on all ranks.
        reset_limit: after so many resets in a row without a `commit()` it raises. Horovod's is without end.

    Raises:
        HorovodInternalError: the limit is reached; on every rank, with the last failure.
        PeerError: a rank has not come to the reset within RINGDP_TIMEOUT: it is lost. Under `ringdp run --elastic` the
            others go on without it, and this is raised where fewer than --min-ranks are left.
    """
    if func is None:
        return lambda function: run(function, reset_limit=reset_limit)

    @functools.wraps(func)
    def as_ours(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except tf.errors.OpError as error:
            ours = original_error(error)
            if ours is None:
                raise
            raise ours from error

    return _elastic.run_fn(as_ours, _elastic.reset, reset_limit)


class _VariablesState(ObjectState):
    """An `ObjectState` and variables, of which there is a committed copy as NumPy arrays."""

    def __init__(self, folder: str | os.PathLike[str] | None, **kwargs: Any) -> None:
        self._saved_variables = self._copied()
        super().__init__(broadcast_object, world.rank, folder=folder, **kwargs)

    def _all_variables(self) -> Sequence[Any]:
        raise NotImplementedError

    def _copied(self) -> list[Any]:
        return [np.asarray(tf.convert_to_tensor(variable).numpy()) for variable in self._all_variables()]

    def save(self) -> None:
        self._saved_variables = self._copied()
        super().save()

    def restore(self) -> None:
        for variable, saved in zip(self._all_variables(), self._saved_variables, strict=True):
            variable.assign(saved)
        super().restore()

    def sync(self) -> None:
        broadcast_variables(self._all_variables(), root_rank=0)
        self._saved_variables = self._copied()
        super().sync()

    def _copies(self) -> Any:
        return super()._copies(), self._saved_variables

    def _put_copies(self, copies: Any) -> None:
        objects, self._saved_variables = copies
        super()._put_copies(objects)

    # --- see ringdp.commits.kept.Holder ---

    def _payloads(self) -> Payloads:
        saved, numbers = (self._saved_variables, self._saved_state), generators.states()
        return Payloads(lambda sink: pickle.dump(saved, sink), lambda sink: pickle.dump(numbers, sink))

    def _put_state(self, state: Payload) -> None:
        variables, objects = pickle.loads(state)
        theirs = [(array.shape, array.dtype) for array in variables]
        ours = [(array.shape, array.dtype) for array in self._copied()]
        if theirs != ours:
            raise UsageError(
                f"rank {world.rank()}: the commit is of another state than this one: its {len(theirs)} variables "
                f"differ from the {len(ours)} here in number, shapes or dtypes. To begin anew, delete the folder"
            )
        self._saved_variables = variables
        for variable, saved in zip(self._all_variables(), variables, strict=True):
            variable.assign(saved)
        self._take_saved(objects)


class TensorFlowKerasState(_VariablesState):
    """The state of a training process: `TensorFlowKerasState(model, optimizer, epoch=0, batch=0)`.

    All variables of the model and of the optimizer are saved, restored and sent; further arguments become attributes
    that are treated as by `ringdp.elastic.ObjectState`.

    Args:
        model: a Keras model, which is built.
        optimizer: its optimizer, if the model is not compiled with one. It is built if it is not.
        backend: not used.
        folder: see `ringdp.elastic.ObjectState`.
        kwargs: the attributes' first values.

    Raises:
        UsageError: the model is not built.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        backend: Any = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not model.built:
            raise UsageError(
                "TensorFlowKerasState: the model has no variables yet: call model.build(input_shape)"
            )
        self.model, self.optimizer = model, optimizer or model.optimizer
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(model.trainable_variables)
        super().__init__(folder, **kwargs)

    def _all_variables(self) -> Sequence[Any]:
        of_optimizer = [] if self.optimizer is None else list(self.optimizer.variables)
        return [*self.model.variables, *of_optimizer]


class TensorFlowState(_VariablesState):
    """The state of a training process by its variables: `TensorFlowState(variables, epoch=0)`.

    Args:
        variables: tf.Variable, or Keras's.
        session: of TensorFlow 1; must be None.
        folder: see `ringdp.elastic.ObjectState`.
        kwargs: the attributes' first values.

    Raises:
        UsageError: no variables, or a session.
    """

    def __init__(
        self,
        variables: Any = None,
        session: None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if session is not None or variables is None:
            raise UsageError(
                "TensorFlowState needs the list of variables, and no session: TensorFlow 2 keeps neither"
            )
        self.variables = list(variables)
        super().__init__(folder, **kwargs)

    def _all_variables(self) -> Sequence[Any]:
        return self.variables


__all__ = [
    "HorovodInternalError",
    "HostUpdateResult",
    "HostsUpdatedInterrupt",
    "ObjectState",
    "State",
    "TensorFlowKerasState",
    "TensorFlowState",
    "run",
]
