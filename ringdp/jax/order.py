"""The order of collectives in compiled programs: JAX's ordered effects.

XLA runs what does not depend on each other in any order, and at once. So every collective of ringdp has one and the
same ordered effect: JAX threads a token through all of them, in the order in which they were traced, also through the
bodies of loops, the branches of conditions, and functions that are called twice; and from one compiled program to the
next. All ranks, which trace the same, run them in the same order.

This module alone uses what JAX does not promise to keep.
"""

from __future__ import annotations

from typing import Any

from jax.errors import JaxRuntimeError
from jax.interpreters import mlir

try:
    from jax._src import dispatch, effects
    from jax._src.core import abstract_token

    SETS = (
        effects.ordered_effects,
        effects.lowerable_effects,
        effects.control_flow_allowed_effects,
        effects.custom_derivatives_allowed_effects,
        effects.remat_allowed_effects,
    )
    Base: Any = effects.Effect
    Tokens = type(dispatch.runtime_tokens)
    get_token_input = Tokens.get_token_input
except (ImportError, AttributeError) as error:
    import jax

    raise ImportError(
        f"ringdp.jax does not know how JAX {jax.__version__} orders effects ({error}): it is tested with JAX 0.10; "
        "please report this"
    ) from error


class Collectives(Base):  # type: ignore[misc]
    """What all collectives do, one after another."""

    def __repr__(self) -> str:
        return "collectives of ringdp"

    def __eq__(self, other: object) -> bool:
        return type(other) is Collectives

    def __hash__(self) -> int:
        return hash(Collectives)


for one in SETS:
    one.add_type(Collectives)
EFFECT = Collectives()


def after_what_failed(self: Any, effect: Any, devices: Any) -> Any:
    """The token with which a program begins. That of one that has failed is an error for ever, and would be that of
    every later program: who comes after it begins anew.
    """
    if effect == EFFECT and has_failed(self.current_tokens.get(effect)):
        del self.current_tokens[effect]
    return get_token_input(self, effect, devices)


def has_failed(token: Any) -> bool:
    """Without waiting for a program that still runs."""
    if token is None or not token._buf.is_ready():
        return False
    try:
        token.block_until_ready()
    except JaxRuntimeError:
        return True
    return False


Tokens.get_token_input = after_what_failed


def in_order(lowering: Any) -> Any:
    """A rule that lowers a primitive with this effect: `lowering(context, *operands, **params)` with a token behind the
    operands, and one behind the results."""

    def rule(context: Any, *operands: Any, **params: Any) -> Any:
        token = context.tokens_in.get(EFFECT)
        with_token = context.replace(
            avals_in=[*context.avals_in, abstract_token], avals_out=[*context.avals_out, abstract_token]
        )
        *results, token = lowering(with_token, *operands, token, **params)
        context.set_tokens_out(mlir.TokenSet({EFFECT: token}))
        return results

    return rule
