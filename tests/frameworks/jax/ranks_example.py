"""examples/jax: learns the digits, with the same bits on all ranks, and the same whatever each rank began with."""

import runpy

import jax
import numpy as np
import optax
import pytest
from driver.phases import ROOT

import ringdp


def alone(train, epochs, seed=1):
    """The parameters of a training on one rank, with all of each batch."""
    x, y = train["digits"](seed)[0]
    params, optimizer = train["network"](jax.random.key(seed)), optax.adam(0.003)
    state, gradient = optimizer.init(params), jax.jit(jax.grad(train["loss_of"]))
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(x)).reshape(-1, 100)
        for batch in order:
            updates, state = optimizer.update(gradient(params, x[batch], y[batch]), state, params)
            params = optax.apply_updates(params, updates)
    return params


def test_digits():
    train = runpy.run_path(str(ROOT / "examples" / "jax" / "train.py"))
    if 100 % ringdp.size():
        with pytest.raises(SystemExit, match="must divide evenly"):
            train["main"](["--epochs", "1"])
    batch = ["--batch-size", str(100 - 100 % ringdp.size())]
    params, accuracy = train["main"](["--epochs", "10", *batch])
    assert accuracy >= 0.93
    mine = [leaf.tobytes() for leaf in map(np.asarray, jax.tree_util.tree_leaves(params))]
    assert all(theirs == mine for theirs in ringdp.allgather_object(mine))
    assert len(set(ringdp.allgather_object(accuracy))) == 1
    if ringdp.size() == 2:  # the same steps as one process, but for rounding
        params, _ = train["main"](["--epochs", "1"])
        for a, b in zip(
            jax.tree_util.tree_leaves(params), jax.tree_util.tree_leaves(alone(train, 1)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
