"""The sharded optimizer (ZeRO-1): each rank keeps the optimizer's state of a part of the parameters, and steps that.

`how.py` says what an optimizer can be sharded by, `optimizer.py` is what comes between it and its class; `elements.py`
and `parameters.py` are the two ways to shard, `covered.py` keeps gradients of which a rank has a part from being taken
for whole. Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models", SC 2020, stage 1.
"""
