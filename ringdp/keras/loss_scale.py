"""LossScaleOptimizer, which `mixed_float16` puts around every optimizer: all ranks skip a step, or none.

Keras's own looks at this rank's gradients, and calls the inner optimizer only if they are finite. A rank that
overflowed would halve its scale and go on, while the others wait for it in the exchange. So gradients must be exchanged
before that look: then an inf or a NaN of one rank is in everybody's, and all decide alike.

`model.compile` makes the LossScaleOptimizer itself, of Keras's class, and nothing of the inner optimizer's is called
before the look. So the two methods in which a step begins are replaced in that class, by ones that do the same for any
other inner optimizer. This works in whichever order the two are made, also around an optimizer that was loaded.

What is exchanged is scaled: with compression to float16 that keeps small gradients from becoming 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def exchange_before_the_check() -> None:
    """Replace the methods, once in a process."""
    scaler = keras.optimizers.LossScaleOptimizer
    if getattr(scaler.apply, "exchanges", False):
        return
    keras_apply, keras_stateless_apply = scaler.apply, scaler.stateless_apply

    def apply(self: Any, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        inner = distributed(self)
        if inner is None:
            keras_apply(self, grads, trainable_variables)
            return
        variables = inner.build_for(self, trainable_variables)
        inner.take(grads, variables, lambda reduced: keras_apply(self, reduced, variables), self._variables)

    def stateless_apply(
        self: Any,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
    ) -> tuple[list[Any], list[Any]]:
        inner = distributed(self)
        if inner is None or not self.built:
            result: tuple[list[Any], list[Any]] = keras_stateless_apply(
                self, optimizer_variables, grads, trainable_variables
            )
            return result
        own, model = self.variables, inner._trainable_variables

        def step(reduced: list[Any]) -> None:
            of_model, of_optimizer = keras_stateless_apply(
                self, [v.value for v in own], reduced, [v.value for v in model]
            )
            for variable, value in zip([*model, *own], [*of_model, *of_optimizer], strict=True):
                variable.assign(value)

        values = [*zip(model, trainable_variables, strict=True), *zip(own, optimizer_variables, strict=True)]
        with keras.StatelessScope(values) as scope:
            inner.take(grads, model, step, self._variables)
        return [scope.get_current_value(v) for v in model], [scope.get_current_value(v) for v in own]

    apply.exchanges = True  # type: ignore[attr-defined]
    scaler.apply, scaler.stateless_apply = apply, stateless_apply


def distributed(scaler: Any) -> Any:
    """The optimizer inside, if it is one of ours and this is a step's beginning; else None."""
    from ringdp.keras.optimizer import Distributed

    inner = scaler.inner_optimizer
    return inner if isinstance(inner, Distributed) and not inner._stepping else None
