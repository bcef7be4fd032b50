"""Handwritten digits with Keras's fit, on several ranks. On any backend:

KERAS_BACKEND=jax ringdp run -n 2 examples/keras/train.py
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import ringdp.keras as hvd


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32, help="images a step on each rank")
    parser.add_argument("--base-lr", type=float, default=0.002, help="learning rate for one rank")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", help="a .keras file, written by rank 0 after each epoch")
    return parser.parse_args(given)


def digits(seed):
    """1797 images of 8 x 8, and what they show: 1500 to train on, the others held out."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    x = (data.images[order, :, :, None] / 16).astype(np.float32)
    y = data.target[order].astype(np.int32)
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def network():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def main(given=None):
    """Train; (the model, the accuracy on the images that were held out)."""
    args = arguments(given)
    hvd.init()
    train, test = digits(args.seed)
    x, y = hvd.shard_equally(*train)  # this rank's part
    keras.utils.set_random_seed(args.seed + hvd.rank())  # ranks shuffle differently; weights are rank 0's

    model = network()
    lr = args.base_lr * hvd.size()
    model.compile(
        optimizer=hvd.DistributedOptimizer(keras.optimizers.Adam(lr)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.MetricAverageCallback(),
        hvd.callbacks.LearningRateWarmupCallback(lr, warmup_epochs=2),
    ]
    if args.save:
        callbacks.append(hvd.callbacks.ModelCheckpoint(args.save))
    model.fit(
        x, y, batch_size=args.batch_size, epochs=args.epochs, callbacks=callbacks,
        verbose=2 if hvd.rank() == 0 else 0,
    )  # fmt: skip

    accuracy = float(model.evaluate(*test, verbose=0, return_dict=True)["accuracy"])
    if hvd.rank() == 0:
        print(
            f"held-out accuracy {accuracy:.4f} on {hvd.size()} ranks, {keras.backend.backend()}", flush=True
        )
    return model, accuracy


if __name__ == "__main__":
    main()
