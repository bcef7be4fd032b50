"""What a `DistributedOptimizer` looks for, where its user asks: docs/checks.md.

`options.py` says what can be asked for; `finite.py` looks for gradients that are not finite (`alone.py` where nothing
is exchanged), `missing.py` for those that some ranks lack, `replicas.py` compares the ranks' parameters, `verify.py`
exchanges a bucket a second time. `window.py` has them by the window: what is found before the vote, what is told after
it, and what becomes of the step.
"""
