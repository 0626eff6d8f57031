"""A text encoder without weights: every word is a fixed random vector, so that networks can learn what it stands for.

    v(word)_k = Phi^-1((n_k + 1/2) / 2^32),   n = SHAKE-256(word) as 32-bit numbers, k = 1..D        ~ N(0, 1)
    context   = (v(word_1), ..., v(word_n), 0, ..., 0)                                               tokens x D

Vectors of different words are all but orthogonal (cosine 0 +- D^-1/2). A hash is no random generator of a library: the
vectors are the same on every machine, in every process and with any version. Padding is zero, and so is all of the
empty prompt; cross-attention, which has no bias, takes nothing from it. It does not see the order of words either.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("unicorn_monai")


class WordVectors:
    """Text encoder for networks that are trained from scratch (a ``diffusion.text.TextEncoder``).

    Of a prompt there are at most ``tokens`` words; what is too long is cut, and told.
    """

    def __init__(self, dimensions: int = 64, tokens: int = 16) -> None:
        for name, value in (("dimensions", dimensions), ("tokens", tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        self.dimensions, self.tokens = dimensions, tokens
        self.identity = hashlib.sha256(f"word vectors 1: {tokens} x {dimensions}".encode()).hexdigest()

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (prompts, tokens, dimensions) float32 on the CPU."""
        context = torch.zeros(len(prompts), self.tokens, self.dimensions)
        for row, prompt in zip(context, prompts, strict=True):
            words = split(prompt)
            if len(words) > self.tokens:
                logger.warning(f"The prompt '{prompt}' has {len(words)} words; only the first {self.tokens} are used.")
            for token, word in zip(row, words, strict=False):
                token[:] = vector(word, self.dimensions)
        return context


def split(prompt: str) -> list[str]:
    """The words of a prompt, in lower case, without punctuation."""
    return re.findall(r"\w+", prompt.lower())


def vector(word: str, dimensions: int) -> Tensor:
    """The vector of a word, (dimensions,) float32; a longer one begins with the shorter one."""
    numbers = np.frombuffer(hashlib.shake_256(word.encode()).digest(4 * dimensions), "<u4")  # on every machine
    normal = NormalDist()
    return torch.tensor([normal.inv_cdf((int(n) + 0.5) / 2**32) for n in numbers])
