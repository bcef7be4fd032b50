"""A small recurrent network over bytes."""

import torch
from torch import nn


class Recurrent(nn.Module):
    """(sequences, length) bytes, int64, to the scores (sequences, length, symbols) of the byte after each."""

    def __init__(self, symbols: int, width: int = 64, memory: int = 128) -> None:
        super().__init__()
        self.symbol = nn.Embedding(symbols, width)
        self.memory = nn.GRU(width, memory, batch_first=True)
        self.scores = nn.Linear(memory, symbols)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        remembered, _ = self.memory(self.symbol(text))
        return self.scores(remembered)
