"""Finds clusters of handwritten digits by k-means (Lloyd 1982; k-means++ of Arthur and Vassilvitskii 2007), on any
number of ranks:

    ringdp run -n 4 examples/numpy/kmeans.py        or: mpirun -n 4 python examples/numpy/kmeans.py
    python examples/numpy/kmeans.py                 alone

Each rank assigns its part of the images to the nearest centres; one `map_reduce` an iteration adds up what the new
centres are made of. --blocks fixes the order of addition: any number of ranks finds the same centres, to the bit.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

import ringdp.numpy as rdp


class Found(NamedTuple):
    """What a run of k-means ends with."""

    centres: np.ndarray  # (clusters, 64)
    inertia: float  # sum of the squared distances to the nearest centre
    iterations: int


class Clock:
    """Seconds in which this rank computes, and those that pass altogether."""

    def __init__(self) -> None:
        self.computing = self.iterating = self.choosing = 0.0


def main() -> int:
    args = parse_arguments()
    rdp.init()
    images, labels = load_digits(return_X_y=True)
    clock, best = Clock(), None
    for start in range(args.starts):
        began = time.perf_counter()
        rng = np.random.default_rng([args.seed, start])
        centres = rdp.broadcast(first_centres(images, args.clusters, rng), root_rank=0)
        clock.choosing += time.perf_counter() - began
        found = kmeans(images, centres, args, clock)
        if best is None or found.inertia < best.inertia:
            best = found
        if rdp.rank() == 0:
            print(
                f"start {start + 1:2}/{args.starts}  {found.iterations:3} iterations  "
                f"inertia {found.inertia:13,.1f}  best {best.inertia:13,.1f}",
                flush=True,
            )
    assert best is not None
    result = measure(best, images, labels, args, clock)
    if rdp.rank() == 0:
        report(result)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["centres_identical"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Finds clusters of handwritten digits by k-means.")
    parser.add_argument("--clusters", type=int, default=10, help="centres (10)")
    parser.add_argument(
        "--starts", type=int, default=10, help="runs from other first centres; the best counts (10)"
    )
    parser.add_argument("--iterations", type=int, default=300, help="of a run, at most (300)")
    parser.add_argument("--blocks", type=int, default=24, help="into which the images are cut (24)")
    parser.add_argument("--seed", type=int, default=1, help="of the first centres (1)")
    parser.add_argument("--json", type=Path, help="write the result into this file")
    return parser.parse_args()


def first_centres(images: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: each next one is an image, the likelier the farther it is from those chosen before."""
    chosen = [images[rng.integers(len(images))]]
    nearest = ((images - chosen[0]) ** 2).sum(1)
    while len(chosen) < clusters:
        chosen.append(images[rng.choice(len(images), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, ((images - chosen[-1]) ** 2).sum(1))
    return np.array(chosen)


def distances(images: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared, (images, centres)."""
    return ((images[:, None, :] - centres[None]) ** 2).sum(2)


def kmeans(images: np.ndarray, centres: np.ndarray, args: argparse.Namespace, clock: Clock) -> Found:
    """Iterate until the inertia stays: then no image changes its centre any more."""

    def assign(part: np.ndarray) -> dict[str, Any]:
        """Of some images: sum and number of those that are nearest to each centre, and their inertia."""
        began = time.perf_counter()
        squared = distances(part, centres)
        nearest = squared.argmin(1)
        sums = np.zeros_like(centres)
        np.add.at(
            sums, nearest, part
        )  # in the order of the images, which a product of matrices does not promise
        count = np.bincount(nearest, minlength=len(centres))
        clock.computing += time.perf_counter() - began
        return {"images": sums, "count": count, "inertia": squared.min(1).sum()}

    began = time.perf_counter()
    inertias: list[float] = []
    while len(inertias) < args.iterations:
        total = rdp.map_reduce(assign, images, rdp.Sum, blocks=args.blocks)
        inertias.append(float(total["inertia"]))
        if len(inertias) > 1 and inertias[-1] >= inertias[-2]:
            break
        empty = total["count"] == 0  # such a centre stays where it is
        centres = np.where(empty[:, None], centres, total["images"] / np.maximum(total["count"], 1)[:, None])
    clock.iterating += time.perf_counter() - began
    return Found(centres, inertias[-1], len(inertias))


def measure(
    found: Found, images: np.ndarray, labels: np.ndarray, args: argparse.Namespace, clock: Clock
) -> dict[str, Any]:
    """The figures, the same on all ranks."""

    def digits_in_clusters(part: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        table = np.zeros((args.clusters, 10), int)
        np.add.at(table, (distances(part[0], found.centres).argmin(1), part[1]), 1)
        return table

    table = rdp.map_reduce(digits_in_clusters, (images, labels))
    digest = hashlib.sha256(found.centres.tobytes()).hexdigest()
    computing, iterating = rdp.allreduce(np.array([clock.computing, clock.iterating])).tolist()
    return {
        "ranks": rdp.size(),
        "inertia": found.inertia,
        "accuracy": float(
            table.max(1).sum() / len(images)
        ),  # a cluster stands for the digit that most of it are
        "centres_sha256": digest,
        "centres_identical": len(set(rdp.allgather_object(digest))) == 1,
        "seconds_choosing": clock.choosing,
        "seconds_iterating": iterating,  # averages over the ranks, as the next
        "seconds_computing": computing,
        "speed_up": rdp.size() * computing / iterating,
    }


def report(result: dict[str, Any]) -> None:
    """The last lines."""
    ranks = f"{result['ranks']} rank{'s' if result['ranks'] > 1 else ''}"
    print(
        f"seconds a rank: {result['seconds_choosing']:.2f} choosing first centres, "
        f"{result['seconds_iterating']:.2f} iterating, of which {result['seconds_computing']:.2f} computing"
    )
    print(f"iterating {result['speed_up']:.2f} times as fast as the same work on one rank without exchange")
    print(f"centres {'identical' if result['centres_identical'] else 'DIFFER'} on {ranks}")
    print(f"inertia {result['inertia']:,.1f}, accuracy {result['accuracy']:.4f} on {ranks}")


if __name__ == "__main__":
    raise SystemExit(main())
