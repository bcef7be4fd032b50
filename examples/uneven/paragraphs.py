"""Sequences of very different lengths, the paragraphs of Python's language reference, and a network that reads them."""

import re
from collections import Counter
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

WORDS = 1000  # the most frequent ones; number 0 stands for all others, and for the beginning and the end
LONGEST = 600  # words
BEFORE = 4  # words that a guess is made from
HELD_OUT = 10  # every tenth paragraph


def load() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(training, held-out), always the same for a release of Python: numbers of words, int64, 0 at both ends."""
    split = (re.split(r"\n\s*\n", topics[name]) for name in sorted(topics))
    paragraphs = list(dict.fromkeys(p.strip() for ps in split for p in ps if p.strip()))
    words = [re.findall(r"\w+|[^\w\s]", p)[:LONGEST] for p in paragraphs]
    frequent = Counter(word for paragraph in words for word in paragraph).most_common(WORDS - 1)
    numbers = {word: number for number, (word, _) in enumerate(frequent, start=1)}
    sequences = [torch.tensor([0, *(numbers.get(word, 0) for word in paragraph), 0]) for paragraph in words]
    held_out = sequences[::HELD_OUT]
    del sequences[::HELD_OUT]
    return sequences, held_out


def loss_by_frequency(training: list[torch.Tensor], held_out: list[torch.Tensor]) -> float:
    """What a guesser loses that only knows how frequent each word is, in nats a word."""
    counts = torch.bincount(torch.cat([s[1:] for s in training]), minlength=WORDS) + 1.0
    return -(counts / counts.sum()).log()[torch.cat([s[1:] for s in held_out])].mean().item()


class Reader(nn.Module):
    """Guesses each word of a paragraph from the four before it. (Y. Bengio and others, "A Neural Probabilistic Language
    Model", JMLR 3 (2003).) Nothing is padded: the work of a batch is that of its words.
    """

    def __init__(self, width: int = 32, hidden: int = 96) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, width)
        self.hidden = nn.Linear(BEFORE * width, hidden)
        self.scores = nn.Linear(hidden, WORDS)

    def forward(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The mean over all words of how surprising each is, in nats."""
        windows = torch.cat([pad(sequence, (BEFORE - 1, 0)).unfold(0, BEFORE + 1, 1) for sequence in batch])
        known = self.word(windows[:, :-1]).flatten(1)
        return cross_entropy(self.scores(torch.tanh(self.hidden(known))), windows[:, -1])


def words_in(batch: list[torch.Tensor]) -> int:
    """That `Reader` has to guess."""
    return sum(len(sequence) - 1 for sequence in batch)
