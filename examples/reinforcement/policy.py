"""What chooses the actions, and what says how good a situation is."""

import torch
from torch import nn

OBSERVED, ACTIONS = 4, 2  # CartPole's numbers in an observation; left and right


class Policy(nn.Module):
    """(situations, 4) to the scores of the actions (situations, 2) and the expected returns (situations,)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.actor = _layers(width, ACTIONS)
        self.critic = _layers(width, 1)

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(observations), self.critic(observations).squeeze(-1)


def _layers(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(OBSERVED, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )
