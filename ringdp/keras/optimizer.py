"""`DistributedOptimizer`: a Keras optimizer whose gradients are combined over all ranks before it uses them.

The optimizer that is given stays the same object, with its state; its class becomes one derived from its own, which
overrides `apply`. All of Keras's ways to a step end there: `fit` on each backend, `apply_gradients`, and
`stateless_apply`. It calls itself by the name of its own class: a saved model holds an optimizer that loads without
ringdp.

Several backward passes in a step are Keras's own gradient accumulation, with the exchange once for all of them:
`backward_passes_per_step` and the optimizer's `gradient_accumulation_steps` are two names for one thing. While passes
are collected nothing is exchanged; the last one adds them up, exchanges, and lets the optimizer step as if there had
been one batch.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.keras import loss_scale
from ringdp.keras.arguments import checked
from ringdp.keras.compression import Compression
from ringdp.keras.exchange import Options, backend, exchange
from ringdp.process_sets import ProcessSet, global_process_set

Step = Callable[[list[Any]], None]

_numbers = itertools.count()  # of the optimizers: they are made in the same order on all ranks


class Distributed:
    """What is put between an optimizer and its class."""

    _options: Options
    _of_class: type
    _local: frozenset[Any] = frozenset()  # keys of the variables whose gradients are not exchanged
    _stepping = False  # the gradients that `apply` gets are exchanged ones

    # Keras writes the class and its config into a saved model, and would look for this one on loading.
    @property
    def __class__(self) -> type:
        return self._of_class

    @__class__.setter
    def __class__(self, kind: type) -> None:
        object.__setattr__(self, "__class__", kind)

    # --- what Keras calls ---

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Exchange the gradients, and update the variables by what comes of it.

        Args:
            grads: one for each variable; None where there is none.
            trainable_variables: those that the optimizer was built with, or will be now.

        Raises:
            MismatchError: ranks have gradients of different number, shape or dtype.
        """
        plain: Any = super()
        if self._stepping or len(grads) == 0:
            plain.apply(grads, trainable_variables)
            return
        variables = self.build_for(self, trainable_variables)
        self.take(grads, variables, lambda reduced: plain.apply(reduced, variables))

    @property
    def iterations(self) -> Any:
        """How many steps there have been, each of several passes if there are."""
        count: Any = self._iterations  # type: ignore[attr-defined]
        return keras.ops.floor_divide(count, self._passes) if self._passes > 1 else count

    # --- Horovod's ---

    def register_local_var(self, var: Any) -> None:
        """The gradient of this variable stays on its rank, divided by the number of ranks if they are averaged."""
        object.__setattr__(self, "_local", self._local | {self._var_key(var)})  # type: ignore[attr-defined]

    # --- the step ---

    @property
    def _passes(self) -> int:
        return self.__dict__.get("_hidden_passes") or self.gradient_accumulation_steps or 1  # type: ignore[attr-defined]

    def build_for(self, optimizer: Any, variables: Sequence[Any] | None) -> list[Any]:
        """`optimizer` (this one, or one around it) is built; its variables."""
        if variables is None:
            if not optimizer.built:
                raise UsageError(
                    f"{optimizer.name}: give the variables with the gradients, or build(variables) it first"
                )
            return list(self._trainable_variables)  # type: ignore[attr-defined]
        variables = list(variables)
        if not optimizer.built:
            with keras.name_scope(optimizer.name, caller=optimizer):
                optimizer.build(variables)
            optimizer.built = True
        return variables

    def take(
        self, grads: Sequence[Any], variables: Sequence[Any], step: Step, around: Sequence[Any] = ()
    ) -> None:
        """Exchange the gradients of a pass, or collect them; call `step` with what is to be applied.

        Args:
            grads, variables: as for `apply`.
            step: applies gradients. `apply` exchanges nothing that is called in it.
            around: more variables that `step` may write, than this optimizer's.
        """
        for variable in variables:
            if getattr(variable, "overwrite_with_gradient", False):
                raise UsageError(
                    f"{variable.path} is overwritten by its gradient (float8): ringdp.keras cannot exchange that"
                )
        grads = list(grads)
        if self._passes == 1:
            with self._apply_is_plain():
                step(self._exchanged(grads, variables))
            return
        passes, count = self._passes, self._iterations  # type: ignore[attr-defined]
        sums = [self._accumulated_gradients[self._get_variable_index(v)] for v in variables]  # type: ignore[attr-defined]
        there = [i for i, grad in enumerate(grads) if grad is not None]
        divisor = passes if self._options.average_passes else 1

        def last(grads: list[Any]) -> None:
            total = list(grads)
            for i in there:
                total[i] = (grads[i] + sums[i].value) / divisor
            for i in there:
                sums[i].assign(keras.ops.zeros_like(sums[i].value))
            with self._apply_is_plain():
                step(self._exchanged(total, variables))
            # A step that a LossScaleOptimizer skips is none: the window begins anew.
            count.assign(keras.ops.floor_divide(count.value, passes) * passes)

        def collect(grads: list[Any]) -> None:
            for i in there:
                sums[i].assign_add(grads[i])
            count.assign_add(1)

        is_last = keras.ops.equal((count.value + 1) % passes, 0)
        written = [*self.variables, *around, *variables]  # type: ignore[attr-defined]
        backend().either(is_last, last, collect, grads, written)

    def _exchanged(self, grads: list[Any], variables: Sequence[Any]) -> list[Any]:
        if not self._local:
            return exchange(grads, self._options)
        keep = [self._var_key(v) in self._local for v in variables]  # type: ignore[attr-defined]
        reduced = exchange([None if k else g for g, k in zip(grads, keep, strict=True)], self._options)
        divisor = self._options.divisor_of_local()
        return [
            (None if g is None else g / divisor) if k else r
            for g, k, r in zip(grads, keep, reduced, strict=True)
        ]

    @contextlib.contextmanager
    def _apply_is_plain(self) -> Iterator[None]:
        hidden = self.gradient_accumulation_steps  # type: ignore[attr-defined]
        set_plainly = object.__setattr__  # none of this is state for Keras to track
        set_plainly(self, "_stepping", True)
        set_plainly(self, "_hidden_passes", hidden)
        set_plainly(self, "gradient_accumulation_steps", None)
        try:
            yield
        finally:
            set_plainly(self, "gradient_accumulation_steps", hidden)
            set_plainly(self, "_hidden_passes", None)
            set_plainly(self, "_stepping", False)


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: ReduceOp = Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """Make this optimizer exchange its gradients: it is changed, and returned.

    For `model.compile(optimizer=…)`, and for loops of one's own. To be called after `ringdp.init()`, on all ranks, for
    several optimizers in the same order.

    Args:
        optimizer: a Keras optimizer, built or not; a LossScaleOptimizer, of which the inner one is then meant.
        name: of the exchange; default: "Distributed", the class, and a number.
        device_dense, device_sparse: must be empty: gradients are exchanged where they are.
        compression: `Compression.none`, `.fp16` or `.bf16`, or an object with their two methods.
        sparse_as_dense: gradients of embeddings become dense tensors. They do in any case, and True says so.
        gradient_predivide_factor: f: gradients are divided by f before the sum, and by size / f after it.
        op: Average, Sum, Min, Max, Product or Adasum.
        backward_passes_per_step: batches whose gradients are added up before they are exchanged and applied. It becomes
            the optimizer's `gradient_accumulation_steps`, which may be given instead.
        average_aggregated_gradients: divide that sum by the number of batches; so it is in any case where that was
            given as `gradient_accumulation_steps`.
        num_groups, groups: taken, and of no effect: all gradients are one group.
        process_set: the ranks that take part; this one must be among them.
        scale_local_gradients: divide gradients of `register_local_var` by the number of ranks, as averaging would.

    Raises:
        UsageError: options that contradict each other, or no Keras optimizer.
        NotInitializedError.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = optimizer
        while isinstance(inner, keras.optimizers.LossScaleOptimizer):
            inner = inner.inner_optimizer
    else:
        inner = optimizer
    options = checked(
        inner,
        Options(
            name or f"Distributed{inner.__class__.__name__}.{next(_numbers)}",
            compression,
            sparse_as_dense,
            gradient_predivide_factor,
            op,
            average_aggregated_gradients or backward_passes_per_step == 1,
            process_set,
            scale_local_gradients,
        ),
        backward_passes_per_step,
        num_groups or groups,
        device_dense or device_sparse,
    )
    backend()
    loss_scale.exchange_before_the_check()
    wrap(inner, options)
    if backward_passes_per_step > 1:
        inner.gradient_accumulation_steps = backward_passes_per_step
    return optimizer


def wrap(optimizer: Any, options: Options) -> None:
    """Change the class of the optimizer."""
    of_class = type(optimizer)
    members = {"_options": options, "_of_class": of_class, "__doc__": of_class.__doc__}
    kind = type(of_class.__name__, (Distributed, of_class), members)
    object.__setattr__(optimizer, "__class__", kind)


def PartialDistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: ReduceOp = Average,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
) -> Any:
    """`DistributedOptimizer`, but the gradients of some layers stay on their rank.

    Args:
        local_layers: a built layer, or several: their trainable weights are given to `register_local_var`.
        optimizer and the others: see `DistributedOptimizer`.

    Raises:
        UsageError: as `DistributedOptimizer`; or what is given are no layers, or one that is not built.
    """
    layers = [local_layers] if isinstance(local_layers, keras.layers.Layer) else list(local_layers or ())
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer) or not layer.built:
            raise UsageError(f"local_layers must be built keras.layers.Layer objects, not {layer!r}")
    DistributedOptimizer(
        optimizer,
        name,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        gradient_predivide_factor,
        op,
        groups=groups,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
    )
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for layer in layers:
        for variable in layer.trainable_weights:
            inner.register_local_var(variable)
    return optimizer
