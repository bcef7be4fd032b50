"""Ready communication hooks for `optimizer.register_comm_hook(state, hook)`; `docs/compression.md` says which to take.

    hook             state
    allreduce_hook   None
    fp16_hook        None
    bf16_hook        None
    int8_hook        Int8State()
    powersgd_hook    PowerSGDState()

Each state belongs to one optimizer.
"""

from ringdp.torch.comm_hooks.allreduce import allreduce_hook
from ringdp.torch.comm_hooks.int8 import Int8State, int8_hook
from ringdp.torch.comm_hooks.powersgd import PowerSGDState, powersgd_hook
from ringdp.torch.comm_hooks.sixteen_bits import bf16_hook, fp16_hook

__all__ = [
    "Int8State",
    "PowerSGDState",
    "allreduce_hook",
    "bf16_hook",
    "fp16_hook",
    "int8_hook",
    "powersgd_hook",
]
