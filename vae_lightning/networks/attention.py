"""A translator of attention alone, without recurrence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.networks.translators import Memory, Translator
from vae_lightning.types import UserError


class TransformerTranslator(Translator):
    """Layers that read the source by attention; layers that write by attention to the words before and to the source.

    Choose it for longer texts and more data than `GRUTranslator`, and for a GPU. Vaswani et al. 2017
    (https://arxiv.org/abs/1706.03762), with the layer norm before each part. To write one more word, the layers read
    all words before that word again. Places have vectors of sines, so that no weight depends on the length of a text.

    Args:
        num_source: The number of words of the source; the model sets it.
        num_target: The number of words of the target; the model sets it.
        embedding_size: The length of a word's vector and of all states, a multiple of num_heads and even.
        num_heads: The number of heads of each attention.
        num_layers: The number of layers that read, and of those that write.
        hidden_size: The number of hidden units of each layer.
        dropout: The share of numbers set to 0 in training.

    Raises:
        UserError: if the sizes do not fit.
    """

    def __init__(
        self,
        num_source: int,
        num_target: int,
        embedding_size: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        hidden_size: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_source, num_target, embedding_size, dropout)
        if min(num_heads, num_layers, hidden_size) < 1:
            raise UserError("TransformerTranslator: num_heads, num_layers and hidden_size must be at least 1")
        if embedding_size % num_heads or embedding_size % 2:
            raise UserError(
                f"TransformerTranslator: embedding_size is {embedding_size}; it must be even, and a multiple of "
                f"num_heads={num_heads}"
            )
        sizes = (embedding_size, num_heads, hidden_size, dropout)
        self.reading = nn.ModuleList(Block(*sizes, looks=False) for _ in range(num_layers))
        self.writing = nn.ModuleList(Block(*sizes, looks=True) for _ in range(num_layers))
        self.norm_read, self.norm_written = nn.LayerNorm(embedding_size), nn.LayerNorm(embedding_size)

    def encode(self, embedded: Tensor, log_alive: Tensor) -> Memory:
        states = embedded + places(embedded)
        for block in self.reading:
            states, _ = block(states, log_alive[:, None])
        return Memory(self.norm_read(states), log_alive)

    def decode(self, memory: Memory, embedded: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        before = embedded if state is None else torch.cat((state, embedded), 1)  # [N, T', E]
        length, attention = before.shape[1], memory.log_alive
        later = torch.full((length, length), -math.inf, device=before.device).triu(1)  # a word does not see later ones
        states = before + places(before)
        for block in self.writing:
            states, attention = block(states, later, memory)
        new = slice(length - embedded.shape[1], None)
        return self.norm_written(states[:, new]), before, attention[:, new]


class Block(nn.Module):
    """One layer: attention within a text, attention to the source, and an MLP, each added to its input.

    Args:
        size: The length of the states.
        num_heads: The number of heads.
        hidden_size: The number of hidden units of the MLP.
        dropout: The share of numbers set to 0 in training.
        looks: Whether the layer has attention to the source.
    """

    def __init__(self, size: int, num_heads: int, hidden_size: int, dropout: float, looks: bool) -> None:
        super().__init__()
        self.within, self.norm_within = Attention(size, num_heads), nn.LayerNorm(size)
        if looks:
            self.across, self.norm_across = Attention(size, num_heads), nn.LayerNorm(size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, bias: Tensor, memory: Memory | None = None) -> tuple[Tensor, Tensor]:
        """Return the new states, [N, T, E], and the weights of the attention to the source, or to the own text.

        Args:
            states: [N, T, E].
            bias: What is added to the scores within the text, which broadcasts against [N, T, T].
            memory: The states of the source; None for a layer without attention to the source.
        """
        normed = self.norm_within(states)
        change, attention = self.within(normed, normed, bias)
        states = states + self.dropout(change)
        if memory is not None:
            change, attention = self.across(self.norm_across(states), memory.states, memory.log_alive[:, None])
            states = states + self.dropout(change)
        return states + self.dropout(self.mlp(states)), attention


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D) + bias) V for each head, and an affine map of the heads side by side.

    Args:
        size: The length of the states; each head has D = size / num_heads of it.
        num_heads: The number of heads.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.output = nn.Linear(size, size)

    def forward(self, states: Tensor, seen: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return [N, T, E], and the weights averaged over heads, [N, T, S].

        Args:
            states: The states that give the queries, [N, T, E].
            seen: The states that give keys and values, [N, S, E].
            bias: What is added to the scores, which broadcasts against [N, T, S].
        """
        q, k, v = self._heads(self.query(states)), self._heads(self.key(seen)), self._heads(self.value(seen))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [N, heads, T, S]
        weights = (scores + (bias if bias.dim() < 3 else bias[:, None])).softmax(-1)
        heads = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)  # [N, T, E]
        return self.output(heads), weights.mean(1)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def places(like: Tensor) -> Tensor:
    """sin(t w_i) and cos(t w_i) of each place t, with w_i = 10000^(-2 i / E): [T, E].

    Args:
        like: Vectors of words, [N, T, E], for the shape, the dtype and the device.
    """
    length, size = like.shape[-2:]
    rates = torch.exp(torch.arange(0, size, 2, device=like.device) * (-math.log(10_000) / size))
    angles = torch.arange(length, device=like.device)[:, None] * rates  # [T, E / 2]
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(like.dtype)
