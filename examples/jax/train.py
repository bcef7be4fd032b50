"""Handwritten digits with JAX and optax, on several ranks:

ringdp run -n 2 examples/jax/train.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import ringdp.jax as hvd

WIDTHS = (64, 128, 128, 10)


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=100, help="images a step on all ranks together")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(given)


def digits(seed):
    """1797 images of 8 x 8 pixels, and what they show: 1500 to train on, the others held out."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = (pixels[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def network(key):
    """The parameters of a perceptron with two hidden layers."""
    layers = []
    for inputs, outputs in zip(WIDTHS, WIDTHS[1:], strict=False):
        key, of_this = jax.random.split(key)
        kernel = jax.random.normal(of_this, (inputs, outputs)) * np.sqrt(2 / inputs).astype(np.float32)
        layers.append({"kernel": kernel, "bias": jnp.zeros(outputs)})
    return layers


def scores(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def loss_of(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(scores(params, x), y).mean()


def main(given=None):
    """Train; (the parameters, the accuracy on the images that were held out)."""
    args = arguments(given)
    hvd.init()
    if args.batch_size % hvd.size():
        raise SystemExit(f"--batch-size {args.batch_size} must divide evenly among {hvd.size()} ranks")
    (x, y), (test_x, test_y) = digits(args.seed)

    # Any seed would do on the others: they begin with what rank 0 has.
    params = hvd.broadcast_parameters(network(jax.random.key(args.seed + hvd.rank())))
    optimizer = hvd.distributed(
        optax.adam(args.lr)
    )  # update() averages the gradients of all ranks, in one exchange
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    began, part = time.perf_counter(), args.batch_size // hvd.size()
    for epoch in range(args.epochs):
        order = np.random.default_rng([args.seed, epoch]).permutation(len(x))  # the same on all ranks
        losses = []
        for begin in range(0, len(x) - args.batch_size + 1, args.batch_size):
            mine = order[begin + hvd.rank() * part :][:part]
            params, state, loss = step(params, state, x[mine], y[mine])
            losses.append(loss)
        mean = hvd.average_metrics({"loss": float(jnp.stack(losses).mean())})["loss"]
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}: loss {mean:.4f} after {time.perf_counter() - began:.1f} s", flush=True)

    accuracy = float((scores(params, test_x).argmax(1) == test_y).mean())
    if hvd.rank() == 0:
        print(f"held-out accuracy {accuracy:.4f} on {hvd.size()} ranks", flush=True)
    return params, accuracy


if __name__ == "__main__":
    main()
