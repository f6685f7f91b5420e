"""Networks between two texts. What every translator has, and a translator of gated recurrent units.

A text that is read is a row of whole numbers or of soft symbols (see `symbols`). How far a soft text goes is soft, too:
`alive` is 1 up to the end and 0 behind it, or between 0 and 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.networks.symbols import alive_until_end, embed, shifted, without_unknown
from vae_lightning.types import END_TOKEN, PADDING, UNKNOWN_TOKEN, UserError

_DEAD = 1e-9  # the smallest `alive` whose logarithm is taken: float32 rounds 1 - 1e-9 to 1
_NEVER = -1e4  # log `alive` of padding: below every score of attention and every logit of a gate, and finite


class Memory(NamedTuple):
    """What a translator has read of N texts.

    Args:
        states: A vector for each place, [N, S, H].
        log_alive: log of `alive`, [N, S].
    """

    states: Tensor
    log_alive: Tensor

    def rows(self, index: Tensor) -> Memory:
        """Return the memory of some of the texts.

        Args:
            index: The numbers of the texts, which may repeat.
        """
        return Memory(*(part[index] for part in self))


class Translator(nn.Module, ABC):
    """Logits of the words of a target text, each given those before it and a source text.

    Its words have vectors of `embedding_size` numbers; those of the target are also the weights of the output. To add
    a translator, subclass this and define `encode` and `decode`.

    Args:
        num_source: The number of words of the source; the model sets it.
        num_target: The number of words of the target; the model sets it.
        embedding_size: The length of a word's vector.
        dropout: The share of numbers of the words' vectors and of the output's features set to 0 in training.

    Raises:
        UserError: if a size is below 1, or dropout is not a share.
    """

    def __init__(self, num_source: int, num_target: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        _check(type(self).__name__, dropout, embedding_size=embedding_size)
        self.source = nn.Embedding(num_source, embedding_size)
        self.target = nn.Embedding(num_target, embedding_size)
        nn.init.normal_(self.target.weight, std=embedding_size**-0.5)  # the logits then have a spread of about 1
        self.begin = nn.Parameter(torch.randn(embedding_size))
        self.bias = nn.Parameter(torch.zeros(num_target))
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def encode(self, embedded: Tensor, log_alive: Tensor) -> Memory:
        """Return what is read of a source text.

        Args:
            embedded: The vectors of its words, [N, S, E].
            log_alive: [N, S].
        """

    @abstractmethod
    def decode(self, memory: Memory, embedded: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        """Return features [N, T, E] of the next T words, the new state, and what each looks at, [N, T, S].

        Args:
            memory: What was read.
            embedded: The vectors of the words before each of the T words, [N, T, E].
            state: The state after the words before these; None at the beginning.
        """

    def read(self, symbols: Tensor, alive: Tensor | None = None) -> Memory:
        """Return what is read of a source text.

        Args:
            symbols: Whole numbers [N, S], or shares of all words [N, S, V].
            alive: [N, S]; None for `alive_until_end`.
        """
        alive = alive_until_end(symbols) if alive is None else alive
        log_alive = torch.where(alive > 0, alive.clamp(min=_DEAD).log(), _NEVER)
        return self.encode(self.dropout(embed(self.source, symbols)), log_alive)

    def predict(self, memory: Memory, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of each word of a target text given the true words before it, and where each looks.

        Args:
            memory: What was read.
            tokens: Whole numbers, [N, T].

        Returns:
            [N, T, V] and [N, T, S].
        """
        features, _, attention = self.decode(
            memory, self.dropout(shifted(self._embed_target(tokens), self.begin)), None
        )
        return self._logits(features), attention

    def step(self, memory: Memory, symbol: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Return the logits of one more word, [N, V], and the new state.

        Args:
            memory: What was read.
            symbol: The word before it: whole numbers [N] or shares [N, V]; None at the beginning.
            state: The state after the words before that; None at the beginning.
        """
        before = self.begin.expand(len(memory.states), -1) if symbol is None else self._embed_target(symbol)
        features, state, _ = self.decode(memory, self.dropout(before[:, None]), state)
        return self._logits(features)[:, 0], state

    def write(self, memory: Memory, length: int) -> Tensor:
        """Return the text made of the likeliest next word, again and again: int64 [N, length], padded behind the end.

        The unknown word is never written.

        Args:
            memory: What was read.
            length: The number of columns.
        """
        text = torch.full((len(memory.states), length), PADDING, device=memory.states.device)
        ended, state, word = torch.zeros_like(text[:, 0], dtype=torch.bool), None, None
        for t in range(length):
            logits, state = self.step(memory, word, state)
            word = without_unknown(logits).argmax(-1)
            word = word + (word >= UNKNOWN_TOKEN).long()  # back to the numbers of all words
            text[:, t] = torch.where(ended, PADDING, word)
            ended = ended | (word == END_TOKEN)
            if bool(ended.all()):
                break
        return text

    def _embed_target(self, symbols: Tensor) -> Tensor:
        return embed(self.target, symbols) * self.target.embedding_dim**0.5

    def _logits(self, features: Tensor) -> Tensor:
        return F.linear(self.dropout(features), self.target.weight, self.bias)


TranslatorRecipe: TypeAlias = Callable[[int, int], Translator]
"""A `Translator` class, or a `functools.partial` of one: called as `recipe(num_source, num_target)`."""


class GRUTranslator(Translator):
    """A bidirectional GRU that reads and a GRU that writes, with dot-product attention to what was read.

    The usual choice for short texts on a CPU. Bahdanau et al. 2015 (https://arxiv.org/abs/1409.0473) for the attention;
    here it follows the GRU, so that training on a known target is one call (Luong et al. 2015,
    https://arxiv.org/abs/1508.04025). The GRU that writes starts from zeros: all that it knows of the source comes
    through attention, so that it learns less of whole sentences by heart.

    Args:
        num_source: The number of words of the source; the model sets it.
        num_target: The number of words of the target; the model sets it.
        embedding_size: The length of a word's vector.
        hidden_size: The number of units of the GRU that writes, and of both directions of the one that reads.
        dropout: The share of numbers set to 0 in training.

    Raises:
        UserError: if a size is below 1, or hidden_size is odd.
    """

    def __init__(
        self, num_source: int, num_target: int, embedding_size: int = 32, hidden_size: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__(num_source, num_target, embedding_size, dropout)
        _check("GRUTranslator", dropout, hidden_size=hidden_size)
        if hidden_size % 2:
            raise UserError(f"GRUTranslator: hidden_size is {hidden_size}; it must be even, a half for each direction")
        self.encoder = SoftGRU(embedding_size, hidden_size // 2)
        self.decoder = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.combine = nn.Linear(2 * hidden_size, embedding_size)

    def encode(self, embedded: Tensor, log_alive: Tensor) -> Memory:
        return Memory(self.encoder(embedded, log_alive), log_alive)

    def decode(self, memory: Memory, embedded: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        hidden, state = run_gru(self.decoder, embedded, state)  # [N, T, H]
        scores = hidden @ memory.states.transpose(1, 2) + memory.log_alive[:, None]
        attention = scores.softmax(-1)  # [N, T, S]
        features = torch.tanh(self.combine(torch.cat((hidden, attention @ memory.states), -1)))
        return features, state, attention


class SoftGRU(nn.GRU):
    """A bidirectional GRU over texts that end softly: h_t = z_t h_{t-1} + (1 - z_t) n_t, logit z_t less log alive_t.

    So alive = 1 changes nothing, and at alive = 0 the state is kept, z_t = 1: padding of any length before or behind a
    text has no effect. log alive enters as one more input, whose weight is fixed.

    Args:
        input_size: The length of an input.
        hidden_size: The number of units of each direction.
    """

    keep: Tensor

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, bidirectional=True)
        gate = torch.zeros(3 * hidden_size, 1)  # torch's order of gates: r, z, n
        gate[hidden_size : 2 * hidden_size] = -1.0
        self.register_buffer("keep", gate, persistent=False)

    def forward(self, embedded: Tensor, log_alive: Tensor) -> Tensor:  # type: ignore[override]
        """Return the states of both directions at each place, [N, S, 2 H].

        Args:
            embedded: [N, S, E].
            log_alive: [N, S].
        """
        with torch.autocast(embedded.device.type, enabled=False):
            inputs = torch.cat((embedded.to(self.keep.dtype), log_alive[..., None].to(self.keep.dtype)), -1)
            weights = [
                torch.cat((weight, self.keep), 1) if name.startswith("weight_ih") else weight
                for name, weight in self.named_parameters()
            ]
            start = inputs.new_zeros(2, len(inputs), self.hidden_size)
            states, _ = torch.gru(inputs, start, weights, True, 1, 0.0, self.training, True, True)
        return states


class LanguageModel(nn.Module):
    """Logits of each word of a text given the words before it, by a GRU; the text may be of soft symbols.

    Args:
        num_words: The number of words; the model sets it.
        embedding_size: The length of a word's vector.
        hidden_size: The number of units of the GRU.
        dropout: The share of numbers set to 0 in training.

    Raises:
        UserError: if a size is below 1, or dropout is not a share.
    """

    def __init__(self, num_words: int, embedding_size: int = 32, hidden_size: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        _check("LanguageModel", dropout, embedding_size=embedding_size, hidden_size=hidden_size)
        self.words = nn.Embedding(num_words, embedding_size)
        self.begin = nn.Parameter(torch.randn(embedding_size))
        self.gru = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, num_words)
        self.dropout = nn.Dropout(dropout)

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the logits of each place, [N, L, V]; those of place t depend on the symbols before t.

        Args:
            symbols: Whole numbers [N, L], or shares of all words [N, L, V].
        """
        hidden, _ = run_gru(self.gru, self.dropout(shifted(embed(self.words, symbols), self.begin)), None)
        logits: Tensor = self.output(self.dropout(hidden))
        return logits


LanguageModelRecipe: TypeAlias = Callable[[int], LanguageModel]
"""A `LanguageModel` class, or a `functools.partial` of one: called as `recipe(num_words)`."""


def run_gru(gru: nn.GRU, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a GRU in the precision of its weights, whatever autocast says.

    Args:
        gru: The GRU.
        inputs: [N, T, E].
        state: [1, N, H]; None for zeros.
    """
    dtype = next(gru.parameters()).dtype
    with torch.autocast(inputs.device.type, enabled=False):
        outputs, last = gru(inputs.to(dtype), None if state is None else state.to(dtype))
    return outputs, last


def _check(owner: str, dropout: float, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{owner}: {name} is {size}; it must be at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"{owner}: dropout is {dropout}; it must be at least 0 and below 1")
