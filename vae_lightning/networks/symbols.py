"""Texts of whole numbers and of soft symbols: where they end, the vectors of their words, the unknown word.

A soft symbol is a row of shares of all words, which sum to 1. It is read as the mean of the words' vectors, so that a
text of one-hot symbols is read as its numbers are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.types import END_TOKEN, PADDING, UNKNOWN_TOKEN


def alive_until_end(symbols: Tensor) -> Tensor:
    """alive_t = prod_{s < t} (1 - share of the end at s): [N, L], the end itself included.

    Args:
        symbols: Whole numbers [N, L], in which padding is dead, or shares of all words [N, L, V].
    """
    if not symbols.is_floating_point():
        ends = symbols == END_TOKEN
        return ((symbols != PADDING) & (ends.cumsum(1) == ends)).to(torch.get_default_dtype())
    goes_on = 1 - symbols[..., END_TOKEN]
    return F.pad(goes_on[:, :-1].cumprod(1), (1, 0), value=1.0)


def embed(table: nn.Embedding, symbols: Tensor) -> Tensor:
    """Return the vectors of words, or the means of all words' vectors: [..., E].

    Args:
        table: The vectors.
        symbols: Whole numbers [...], padding included, or shares of all words [..., V].
    """
    return symbols @ table.weight if symbols.is_floating_point() else table(symbols.clamp(min=0))


def shifted(embedded: Tensor, begin: Tensor) -> Tensor:
    """Return the vector before each word: the begin vector, then all words but the last, [N, T, E].

    Args:
        embedded: The vectors of the words, [N, T, E].
        begin: The vector before the first word, [E].
    """
    return torch.cat((begin.expand(len(embedded), 1, -1).to(embedded.dtype), embedded[:, :-1]), 1)


def without_unknown(values: Tensor) -> Tensor:
    """Return values of all words but the unknown one: [..., V] -> [..., V - 1].

    Args:
        values: A value for each word.
    """
    return torch.cat((values[..., :UNKNOWN_TOKEN], values[..., UNKNOWN_TOKEN + 1 :]), -1)


def with_unknown(shares: Tensor) -> Tensor:
    """Return shares of all words, 0 for the unknown one: [..., V - 1] -> [..., V].

    Args:
        shares: A share for each word but the unknown one.
    """
    none = torch.zeros_like(shares[..., :1])
    return torch.cat((shares[..., :UNKNOWN_TOKEN], none, shares[..., UNKNOWN_TOKEN:]), -1)
