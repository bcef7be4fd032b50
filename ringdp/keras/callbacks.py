"""Callbacks for `model.fit` on several ranks. Each does its part on all ranks: give all ranks the same list."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras

from ringdp import world
from ringdp.errors import MismatchError, UsageError
from ringdp.keras.state import broadcast_variables, state_of
from ringdp.metrics import average_metrics
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.state import allgather_object

Logs = dict[str, Any] | None


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    """Gives all ranks the state of one before the first batch: weights, optimizer, states of random seeds.

    What is made in the first batch only is broadcast after it. Also looks whether all ranks have as many batches in an
    epoch: a rank that has more would wait for the others in the exchange of its gradients.
    """

    def __init__(
        self,
        root_rank: int = 0,
        device: str = "",
        local_variables: Iterable[Any] | Any | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> None:
        """
        Args:
            root_rank: whose state.
            device: must be empty: variables are sent from where they are.
            local_variables: variables that stay as they are on each rank.
            process_set: the ranks that take part.
        """
        super().__init__()
        if device:
            raise UsageError("BroadcastGlobalVariablesCallback: device must be empty")
        self.root_rank, self.process_set = root_rank, process_set
        given = (
            local_variables
            if isinstance(local_variables, (list, tuple, set))
            else [local_variables]
            if local_variables is not None
            else []
        )
        self._done = {id(v) for v in given}
        self._local = frozenset(self._done)
        self._begun = False

    def on_train_begin(self, logs: Logs = None) -> None:
        self._compare_steps()
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if on_tensorflow and self.model.jit_compile and self.process_set.size() > 1:
            warnings.warn(
                "XLA cannot compile the exchange of gradients: the training step is not compiled by it. "
                "model.compile(jit_compile=False) says the same and avoids this warning",
                stacklevel=2,
            )
            self.model.jit_compile = False
            self.model.make_train_function(force=True)
        self._done = set(self._local)
        self._begun = False
        self._broadcast()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if not self._begun:
            self._begun = True
            self._broadcast()

    def _broadcast(self) -> None:
        new = [v for v in state_of(self.model) if id(v) not in self._done]
        broadcast_variables(new, self.root_rank, process_set=self.process_set)
        self._done.update(map(id, new))

    def _compare_steps(self) -> None:
        steps = (self.params or {}).get("steps")
        found = allgather_object((world.rank(), steps), "fit.steps", self.process_set)
        if len({theirs for _, theirs in found}) > 1:
            table = ", ".join(f"{theirs} on rank {rank}" for rank, theirs in found[:8])
            raise MismatchError(
                f"fit: the ranks have different numbers of batches in an epoch: {table}. Give all ranks as many: "
                "by ringdp.keras.shard_equally, or steps_per_epoch"
            )


class MetricAverageCallback(keras.callbacks.Callback):
    """Averages the metrics of an epoch over the ranks, for the callbacks that come after it in the list.

    Every rank's metrics count alike. To stand before ReduceLROnPlateau, EarlyStopping, ModelCheckpoint and the like, so
    that they decide alike on all ranks.
    """

    def __init__(self, device: str = "", process_set: ProcessSet = global_process_set) -> None:
        """
        Args:
            device: must be empty.
            process_set: the ranks that take part.
        """
        super().__init__()
        if device:
            raise UsageError("MetricAverageCallback: device must be empty")
        self.process_set = process_set

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if logs is not None:
            logs.update(average_metrics(logs, name="MetricAverageCallback", process_set=self.process_set))


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """Sets the learning rate to `initial_lr * multiplier(epoch)`, between two epochs.

    Momentum correction (Goyal et al., Accurate, Large Minibatch SGD, section 3.1): what momentum has gathered was
    multiplied by the old rate; it is rescaled to the new one. That is done in the optimizer's variables, so it holds in
    compiled steps too.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        """
        Args:
            initial_lr: what is multiplied.
            multiplier: of the epoch (a fraction unless `staircase`), or a number m: then m ** (epoch - start_epoch).
            start_epoch: the first epoch in which the rate is set.
            end_epoch: the first one in which it is no more; None: never.
            staircase: at the beginning of an epoch, not of each batch.
            momentum_correction: where the optimizer has momentum (SGD, RMSprop).
            steps_per_epoch: batches in an epoch; default: what `fit` knows.
        """
        super().__init__()
        if initial_lr is None:
            raise UsageError(f"{type(self).__name__} needs initial_lr")
        self.initial_lr, self.start_epoch, self.end_epoch = initial_lr, start_epoch, end_epoch
        self.staircase, self.momentum_correction = staircase, momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self.multiplier: Callable[[float], float] = (
            multiplier if callable(multiplier) else lambda epoch: multiplier ** (epoch - start_epoch)
        )
        self._epoch = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        if self.staircase or self.steps_per_epoch:
            return
        self.steps_per_epoch = (self.params or {}).get("steps")
        if not self.steps_per_epoch:
            raise UsageError(
                f"{type(self).__name__}: fit does not know the number of batches: give steps_per_epoch"
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._epoch < self.start_epoch or (self.end_epoch is not None and self._epoch >= self.end_epoch):
            return
        if not self.staircase:
            assert self.steps_per_epoch is not None
            self._set(self._epoch + batch / self.steps_per_epoch)
        elif batch == 0:
            self._set(self._epoch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if logs is not None:
            logs["lr"] = self._rate()

    def _rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _set(self, epoch: float) -> None:
        old, new = self._rate(), self.initial_lr * self.multiplier(epoch)
        optimizer = self.model.optimizer
        optimizer.learning_rate = new
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not self.momentum_correction or not getattr(inner, "momentum", 0) or old in (0, new):
            return
        gathered = getattr(inner, "momentums", None) or getattr(inner, "_momentums", None) or ()
        for variable in gathered:
            if variable is not None:
                variable.assign(variable * (new / old))


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raises the learning rate from `initial_lr / size` to `initial_lr` in the first epochs, batch by batch.

    Goyal et al., Accurate, Large Minibatch SGD, section 2.2. `initial_lr` is the rate that was scaled by the number of
    ranks.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        """
        Args:
            initial_lr: the rate after the warm-up.
            warmup_epochs: how many epochs it takes.
            momentum_correction, steps_per_epoch: see `LearningRateScheduleCallback`.
            verbose: 1: rank 0 says when it is over.
        """

        def multiplier(epoch: float) -> float:
            assert self.steps_per_epoch is not None
            epoch += 1 / self.steps_per_epoch  # the last batch of an epoch has the round number
            return 1 / world.size() * (epoch * (world.size() - 1) / warmup_epochs + 1)

        super().__init__(
            initial_lr, multiplier, 0, warmup_epochs, False, momentum_correction, steps_per_epoch
        )
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.verbose and self.end_epoch == epoch + 1 and world.rank() == 0:
            print(f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {self._rate():g}.")


class ModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras's, writing on rank 0 alone. All ranks may load the files."""

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if world.rank() == 0:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if world.rank() == 0:
            super().on_epoch_end(epoch, logs)


__all__ = [
    "BroadcastGlobalVariablesCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
    "ModelCheckpoint",
]
