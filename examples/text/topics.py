"""The text: the language reference that comes with every Python (`help("NUMBERS")` reads it), as bytes."""

import math
import re
from collections import Counter
from pydoc_data.topics import topics

import torch

HELD_OUT = 10  # every tenth paragraph
BYTES = 256  # values of a byte


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """(training, held-out), always the same for a release of Python: bytes, int64.

    Topics have paragraphs in common: each is taken once, so that what is held out has not been trained on.
    """
    split = (re.split(r"\n\s*\n", topics[name]) for name in sorted(topics))
    paragraphs = list(dict.fromkeys(p.strip("\n") + "\n\n" for ps in split for p in ps if p.strip()))
    held_out = paragraphs[::HELD_OUT]
    del paragraphs[::HELD_OUT]
    return _bytes(paragraphs), _bytes(held_out)


def bits_by_counting(training: torch.Tensor, held_out: torch.Tensor, before: int) -> float:
    """Bits a byte of a model that has counted how often each byte follows the `before` bytes in front of it.

    0 is the unigram, 1 the bigram. Each byte has been seen once more than it was (Laplace).
    """
    seen = Counter(_grams(training, before + 1))
    contexts = Counter(gram[:before] for gram in seen.elements())
    found = _grams(held_out, before + 1)
    return -sum(math.log2((seen[g] + 1) / (contexts[g[:before]] + BYTES)) for g in found) / len(found)


def _grams(text: torch.Tensor, length: int) -> list[bytes]:
    content = bytes(text.tolist())
    return [content[i : i + length] for i in range(len(content) - length + 1)]


def _bytes(paragraphs: list[str]) -> torch.Tensor:
    return torch.tensor(list("".join(paragraphs).encode()))
