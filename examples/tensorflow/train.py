"""Handwritten digits with TensorFlow and a training loop of one's own, on several ranks:

ringdp run -n 2 examples/tensorflow/train.py
"""

import argparse
import hashlib
import time

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import ringdp.tensorflow as hvd


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=60, help="images a step on all ranks together")
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(given)


def digits(seed):
    """1797 images of 8 x 8, and what they show: 1500 to train on, the others held out."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    x = (data.images[order, :, :, None] / 16).astype(np.float32)
    y = data.target[order].astype(np.int32)
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


def network():
    layers = tf.keras.layers
    return tf.keras.Sequential(
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


class Training:
    """What a rank does in a step."""

    def __init__(self, lr):
        self.model, self.optimizer = network(), tf.keras.optimizers.Adam(lr)
        self.optimizer.build(self.model.trainable_variables)
        self._loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @property
    def variables(self):
        return [*self.model.variables, *self.optimizer.variables]

    @tf.function
    def step(self, x, y):
        """Train on this rank's images; their loss before the step."""
        with tf.GradientTape() as tape:
            loss = self._loss(y, self.model(x, training=True))
        tape = hvd.DistributedGradientTape(tape)  # its gradients are the average of all ranks'
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss

    @tf.function
    def right(self, x, y):
        """How many of the images are told right."""
        told = tf.argmax(self.model(x, training=False), 1, tf.int32)
        return tf.reduce_sum(tf.cast(told == y, tf.int32))


def batches(count, size, epoch, seed):
    """Of each batch, this rank's places. All ranks draw the same order, and take parts of one length."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - size + 1, size):
        yield np.array_split(order[start : start + size], hvd.size())[hvd.rank()]


def accuracy(training, x, y):
    """Over all images, of which each rank looks at a part."""
    mine = slice(hvd.rank(), None, hvd.size())
    return int(hvd.allreduce(training.right(x[mine], y[mine]), op=hvd.Sum)) / len(y)


def identical(variables):
    """Whether all ranks have the same, bit for bit."""
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in variables)).hexdigest()
    return len(set(hvd.allgather_object(digest))) == 1


def main(given=None):
    """Train; (the accuracy on the images that were held out, whether the ranks' variables are identical)."""
    args = arguments(given)
    hvd.init()
    if args.batch_size % hvd.size():
        raise SystemExit(f"--batch-size {args.batch_size} cannot be split evenly over {hvd.size()} ranks")
    (x, y), held_out = digits(args.seed)
    tf.keras.utils.set_random_seed(args.seed + hvd.rank())  # the variables are rank 0's
    training = Training(args.lr)
    hvd.broadcast_variables(training.variables, root_rank=0)

    for epoch in range(args.epochs):
        start = time.perf_counter()
        losses = [training.step(x[i], y[i]) for i in batches(len(y), args.batch_size, epoch, args.seed)]
        seconds = time.perf_counter() - start
        metrics = hvd.average_metrics({"loss": float(tf.reduce_mean(losses)), "seconds": seconds})
        reached = accuracy(training, *held_out)
        if hvd.rank() == 0:
            speed = len(losses) * args.batch_size / metrics["seconds"]
            print(
                f"epoch {epoch + 1}/{args.epochs}  loss {metrics['loss']:.4f}  held-out accuracy {reached:.4f}  "
                f"{speed:.0f} images/s",
                flush=True,
            )

    same = identical(training.variables)
    if hvd.rank() == 0:
        print(
            f"held-out accuracy {reached:.4f} on {hvd.size()} ranks; variables {'identical' if same else 'DIFFER'}"
        )
    return reached, same


if __name__ == "__main__":
    main()
