"""The data and the network: the handwritten digits that come with scikit-learn, 8 × 8 pixels each."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

HELD_OUT = 360  # of 1,797 images


def load() -> tuple[TensorDataset, TensorDataset]:
    """(training, held-out), always the same: images (N, 1, 8, 8) float32 in [0, 1] and labels (N,) int64."""
    from sklearn.datasets import load_digits  # here, so that data-loading workers do without it

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    digits = torch.from_numpy(labels).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1797))
    images, digits = images[order], digits[order]
    held_out = TensorDataset(images[:HELD_OUT], digits[:HELD_OUT])
    return TensorDataset(images[HELD_OUT:], digits[HELD_OUT:]), held_out


def network() -> nn.Module:
    """Two convolutions and two linear layers, 151,306 parameters: (N, 1, 8, 8) to the scores (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
