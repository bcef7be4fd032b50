"""Episodes of CartPole, many at a time, from the first push to the fall."""

from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from policy import OBSERVED, Policy

LIMIT = 500  # steps, CartPole-v1's own
DISCOUNT, TRACE = 0.99, 0.95  # 100 steps ahead: carts that drift off the track do so slowly


@dataclass(frozen=True)
class Steps:
    """Of some episodes, one after the other: shapes (steps, 4) and (steps,)."""

    observations: torch.Tensor
    actions: torch.Tensor
    log_probabilities: torch.Tensor  # of the actions, when they were chosen
    advantages: torch.Tensor  # how much better than expected it went on
    returns: torch.Tensor  # what the critic should have expected

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, chosen: torch.Tensor) -> "Steps":
        return Steps(*(tensor[chosen] for tensor in vars(self).values()))


class Stage:
    """CartPoles for episodes that are played side by side. An episode follows from its seeds and the policy alone,
    whichever rank plays it."""

    def __init__(self) -> None:
        self._games: list[gymnasium.Env] = []

    @torch.no_grad()
    def play(self, policy: Policy, seeds: list[list[int]], greedy: bool = False) -> tuple[Steps, list[float]]:
        """(steps, return of each episode); an episode for each of `seeds`, none if there are none."""
        while len(self._games) < len(seeds):
            self._games.append(gymnasium.make("CartPole-v1", disable_env_checker=True))
        drawn = [np.random.default_rng(seed) for seed in seeds]
        luck = np.array([random.random(LIMIT) for random in drawn])  # what decides between the actions
        now = [
            game.reset(seed=int(random.integers(1 << 31)))[0]
            for game, random in zip(self._games, drawn, strict=False)
        ]
        episodes: list[list[tuple[torch.Tensor, int, float, float]]] = [[] for _ in seeds]
        beyond = [0.0] * len(seeds)  # what would have come after the limit of steps
        running = list(range(len(seeds)))
        while running:
            seen = torch.from_numpy(np.stack([now[i] for i in running]))
            scores, values = policy(seen)
            likely = torch.log_softmax(scores, dim=1)
            for row, i in enumerate(running[:]):
                left = float(likely[row, 0].exp())
                action = int(left < 0.5) if greedy else int(luck[i, len(episodes[i])] >= left)
                now[i], _, fallen, over, _ = self._games[i].step(action)
                episodes[i].append((seen[row], action, float(likely[row, action]), float(values[row])))
                if over and not fallen:
                    beyond[i] = float(policy(torch.from_numpy(now[i]))[1])
                if fallen or over:
                    running.remove(i)
        return _joined(episodes, beyond), [float(len(episode)) for episode in episodes]


def _joined(episodes: list[list[tuple[torch.Tensor, int, float, float]]], beyond: list[float]) -> Steps:
    steps = [step for episode in episodes for step in episode]
    values = torch.tensor([step[3] for step in steps])
    pairs = zip(episodes, beyond, strict=True)
    advantages = torch.tensor([a for episode, after in pairs for a in _advantages(episode, after)])
    return Steps(
        torch.stack([step[0] for step in steps]) if steps else torch.empty(0, OBSERVED),
        torch.tensor([step[1] for step in steps], dtype=torch.int64),
        torch.tensor([step[2] for step in steps]),
        advantages,
        advantages + values,
    )


def _advantages(episode: list[tuple[torch.Tensor, int, float, float]], after: float) -> list[float]:
    """Generalized advantage estimation (Schulman and others, 2016). Each step that the pole stands is worth 1."""
    found, following, later = [], after, 0.0
    for *_, value in reversed(episode):
        later = 1 + DISCOUNT * following - value + DISCOUNT * TRACE * later
        following = value
        found.append(later)
    return found[::-1]
