"""SEQ4: two texts, of which one is often unknown. The unknown one is a latent variable, a sentence of soft words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.func import functional_call

from vae_lightning.distributions import Classes, DiagonalNormal, FamilyRecipe, Masked, Repeated
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import KnownFields, check_count
from vae_lightning.networks import GRUTranslator, LanguageModel
from vae_lightning.networks.symbols import alive_until_end, with_unknown, without_unknown
from vae_lightning.networks.translators import LanguageModelRecipe, Memory, TranslatorRecipe
from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least
from vae_lightning.trace import Latent, Observed, Trace, draw
from vae_lightning.types import PADDING, Batch, Shape, UserError

_WORDS = partial(DiagonalNormal, sigma=0.37, learn_sigma=True)
_AT_LAST = 10**9  # the step at which a schedule has its end value
_MAPS, _CELL = 8, 8  # texts in the picture of attention, pixels of a word


class Drawn(NamedTuple):
    """A latent sentence of N texts, drawn word by word.

    Args:
        logits: The means of its words' logits, [N, T, V - 1], without the unknown word.
        z: The logits, [N, T, V - 1].
        symbols: softmax(z), shares of all words, [N, T, V]; 0 for the unknown word.
    """

    logits: Tensor
    z: Tensor
    symbols: Tensor


class Seq4(LatentVariableModel):
    """p(x|sentence) p(sentence), with q(sentence|x) where the sentence is unknown: x and sentence are texts.

    Use this model to learn to read sentences (into logical forms, or another language) from few pairs and many x alone.
    Kocisky et al. 2016, "Semantic Parsing with Semi-Supervised Sequential Autoencoders"
    (https://arxiv.org/abs/1609.09315). f, the reader, gives p(x|sentence); b, the writer, a sentence of x. Where the
    sentence is known, f, b and the language model are trained on the pair. Where it is not, b writes a sentence of T
    soft words, one after the other, from which f must tell x again:

        z_t = b(x, soft words before t) + sigma eps,    soft word t = softmax(z_t)

    so that the gradient passes through the sentence. The words of z are shares of all words but the unknown one, and
    the sentence ends as softly: `alive_t`, the product of 1 - (share of the end) over the words before t, weighs what f
    reads and looks at.

    The trace of a known sentence has no latent, and observes the sentence under the language model. -log b(sentence|x)
    is the cost `inverse`: a density of q, in no bound. The prior of z is N(log of the language model, prior_sigma^2),
    whose KL, hundreds of nats, says nothing of words; with ELBO(beta=0) it has no say. The cost `language` compares
    words: sum_t sum_v soft_tv (log soft_tv - log LM_tv), over all T words, so that a sentence that ends early saves
    nothing. It is in no bound either. No gradient of either reaches the weights of the language model.

    Validation and test hide the sentence from the bound; there the cost `reading` is -log f(x|sentence).

    Args:
        x_shape: (T_x,), the columns of x.
        vocabulary: The number of words of the fields `x` and `sentence`.
        max_length: The number of columns of the fields `x` and `sentence`.
        reader: f, network from sentences to the words of x.
        writer: b, network from x to the words of sentences.
        language_model: Network of p(sentence).
        posterior: Family of the logits of a soft word; it takes one number, the mean, for each word.
        prior_sigma: The standard deviation of the prior of the logits.
        latent_length: T, the number of soft words; null for the columns of `sentence`.
        unlabelled_weight: The weight in the loss of the mean over examples without a sentence, beside 1 for the mean
            over those with one: a number or a schedule.
        kwargs: Arguments of `LatentVariableModel`.

    Raises:
        UserError: if a size, a weight or the posterior does not fit.
    """

    measures = ("exact_match", "cost/reading")
    next_verb = "translate"

    def __init__(
        self,
        x_shape: Shape,
        vocabulary: dict[str, int],
        max_length: dict[str, int],
        reader: TranslatorRecipe = GRUTranslator,
        writer: TranslatorRecipe = GRUTranslator,
        language_model: LanguageModelRecipe = LanguageModel,
        posterior: FamilyRecipe = _WORDS,
        prior_sigma: float = 1.0,
        latent_length: int | None = None,
        unlabelled_weight: float | Schedule = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        for name, sizes in (("vocabulary", vocabulary), ("max_length", max_length)):
            if not {"x", "sentence"} <= sizes.keys():
                raise UserError(f"Seq4: {name} has {', '.join(sizes) or 'nothing'}; it must have x and sentence")
        at_least("Seq4", 1, latent_length=1 if latent_length is None else latent_length)
        self.unlabelled_weight = as_schedule(unlabelled_weight)
        at_least("Seq4", 0, unlabelled_weight=self.unlabelled_weight.lowest)
        if not prior_sigma > 0:
            raise UserError(f"Seq4: prior_sigma is {prior_sigma}; it must be above 0")
        self.prior_sigma, self.max_length = prior_sigma, dict(max_length)
        self.latent_length = max_length["sentence"] if latent_length is None else latent_length
        num_x, num_words = vocabulary["x"], vocabulary["sentence"]
        self.reader, self.writer = reader(num_words, num_x), writer(num_x, num_words)  # f and b
        self.language_model = language_model(num_words)
        self.posterior = Repeated((num_words - 1,), posterior)
        if self.posterior.param_shape != (num_words - 1,):
            raise UserError(
                "Seq4: the posterior takes one number for each word; choose one of a scale that is not predicted, such "
                "as DiagonalNormal with --model.posterior.sigma=0.37"
            )
        classes = {field: partial(Classes, num_classes=size) for field, size in vocabulary.items()}
        self.texts = nn.ModuleDict({field: Repeated((), family) for field, family in classes.items()})

    # -- the bound ------------------------------------------------------------------------------------------------

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        batch = KnownFields("Seq4", batch)
        x, sentence, known = batch["x"], batch["sentence"], batch["known"]
        hidden = ~known if self.training else torch.ones_like(known)  # [B]
        rows = hidden.nonzero().flatten()
        if not len(rows):  # one sentence without weight, so that every weight has a gradient on every device
            rows = torch.zeros_like(known[:1], dtype=torch.long)
        read_x = self.writer.read(x)
        drawn = self.draw_sentences(read_x.rows(rows.repeat(num_samples)))  # N = K R
        log_prior = self.log_prior(drawn.symbols)  # [N, T, V - 1]

        def spread(values: Tensor) -> Tensor:
            """[K R, ...] -> [K, B, ...], 0 where the sentence is known."""
            values = values.unflatten(0, (num_samples, len(rows)))
            return values.new_zeros(num_samples, len(x), *values.shape[2:]).index_copy(1, rows, values)

        q, p = self.posterior(spread(drawn.logits)), self._prior(spread(log_prior))
        exists = hidden.to(drawn.z.dtype).expand(num_samples, -1)
        latent = Latent(spread(drawn.z), q, p, exists=exists)
        told, _ = self.reader.predict(self.reader.read(sentence), x)  # [B, T_x, V_x], of known sentences
        soft, _ = self.reader.predict(self.reader.read(drawn.symbols), x[rows].repeat(num_samples, 1))
        logits = torch.where(hidden[:, None, None], spread(soft.to(told.dtype)), told)  # [K, B, T_x, V_x]
        p_sentence = self.p_text("sentence", self.writer.predict(read_x, sentence)[0], sentence)
        inverse = torch.where(known, p_sentence.log_prob(sentence), 0.0)  # [B]
        language = (drawn.symbols * with_unknown(drawn.z.log_softmax(-1) - log_prior)).sum((1, 2))  # [N]
        return Trace(
            x,
            self.p_text("x", logits, x),
            {"sentence": latent},
            observed=self._observed(sentence, known) if self.training else {},
            costs={"inverse": -inverse, "language": exists * spread(language), **self._reading(x, told, known)},
            example_weight=self._weights(hidden, step) if self.training else None,
            found={} if self.training else self._found(batch, drawn, told, inverse),
        )

    def draw_sentences(self, read_x: Memory) -> Drawn:
        """Draw z ~ q(z|x), word by word, each given the soft words before it.

        Args:
            read_x: What the writer has read of N texts x.
        """
        words: list[tuple[Tensor, Tensor, Tensor]] = []
        symbol, state = None, None
        for _ in range(self.latent_length):
            logits, state = self.writer.step(read_x, symbol, state)
            mean = without_unknown(logits)
            z = draw(self.posterior.family(mean))  # [N, V - 1]
            symbol = with_unknown(z.softmax(-1))
            words.append((mean, z, symbol))
        return Drawn(*(torch.stack(part, 1) for part in zip(*words, strict=True)))

    def log_prior(self, symbols: Tensor) -> Tensor:
        """log p(word t|soft words before t) of the language model, [N, T, V - 1], without the unknown word.

        Its weights get no gradient, so that the prior does not move towards q; the soft words do.

        Args:
            symbols: Shares of all words, [N, T, V].
        """
        fixed = {name: weight.detach() for name, weight in self.language_model.named_parameters()}
        logits: Tensor = functional_call(self.language_model, fixed, (symbols,))
        return without_unknown(logits.float() if symbols.dtype != torch.float64 else logits).log_softmax(-1)

    def p_text(self, field: str, logits: Tensor, tokens: Tensor) -> Distribution:
        """p(text) of words that are independent given the logits; padding has 0 nats, and the end counts.

        Args:
            field: `x` or `sentence`.
            logits: [..., B, T, V].
            tokens: The text, [B, T], whose padding is hidden.
        """
        return Masked(self.texts[field](logits), tokens != PADDING)

    def _prior(self, log_p: Tensor) -> Distribution:
        return Independent(Normal(log_p, torch.full_like(log_p, self.prior_sigma), validate_args=False), 2)

    def _observed(self, sentence: Tensor, known: Tensor) -> dict[str, Observed]:
        p = self.p_text("sentence", self.language_model(sentence), sentence)
        return {"sentence": Observed(sentence, p, known)}

    def _reading(self, x: Tensor, told: Tensor, known: Tensor) -> dict[str, Tensor]:
        """-log f(x|sentence) of known sentences as a cost, where the bound hides them."""
        return {} if self.training else {"reading": known * -self.p_text("x", told, x).log_prob(x)}

    def _weights(self, hidden: Tensor, step: int | None) -> Tensor:
        """B / B_labelled for a known sentence, w B / B_unlabelled for an unknown one: [B]."""
        weight = self.unlabelled_weight(_AT_LAST if step is None else step)
        num_hidden = hidden.sum().clamp(min=1)
        num_known = (~hidden).sum().clamp(min=1)
        return len(hidden) * torch.where(hidden, weight / num_hidden, 1 / num_known)

    # -- reading and writing --------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, sentence: Tensor) -> Tensor:
        """Return x as f reads it from sentences, the likeliest word at each place: int64 [N, T_x].

        Args:
            sentence: Whole numbers, [N, L], padded behind the end.
        """
        return self.reader.write(self.reader.read(sentence), self.max_length["x"])

    @torch.no_grad()
    def write(self, x: Tensor) -> Tensor:
        """Return a sentence of each x, the likeliest word of b at each place: int64 [N, T_sentence].

        Args:
            x: Whole numbers, [N, L], padded behind the end.
        """
        return self.writer.write(self.writer.read(x), self.max_length["sentence"])

    @torch.no_grad()
    def attention(self, sentence: Tensor, x: Tensor) -> Tensor:
        """Return which words of the sentence f looks at before each word of x: [N, T_x, T_sentence], rows sum to 1.

        Args:
            sentence: Whole numbers, [N, T_sentence].
            x: Whole numbers, [N, T_x].
        """
        return self.reader.predict(self.reader.read(sentence), x)[1]

    @torch.no_grad()
    def sample_sentences(self, n: int) -> Tensor:
        """Draw sentences of whole words from the language model: int64 [n, T_sentence], padded behind the end.

        Args:
            n: The number of sentences.
        """
        words = torch.full((n, self.max_length["sentence"]), PADDING, device=self.device)
        for t in range(words.shape[1]):
            shares = with_unknown(without_unknown(self.language_model(words[:, : t + 1])[:, t]).float().softmax(-1))
            words[:, t] = torch.multinomial(shares, 1)[:, 0]
        return words.masked_fill(alive_until_end(words) == 0, PADDING)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return x as f reads it from sentences that the language model draws: int64 [n, T_x].

        Args:
            n: The number of samples.
        """
        check_count("Seq4", n)
        return self.read(self.sample_sentences(n))

    @torch.no_grad()
    def _found(self, batch: Batch, drawn: Drawn, told: Tensor, log_b: Tensor) -> dict[str, Tensor]:
        """Return x and the sentence as they are read and written, without a look at the truth, and their nats."""
        x, count = batch["x"], len(batch["x"])
        written = self.write(x)
        latent = drawn.symbols[:count].argmax(-1)  # of the first sample
        return {
            "tokens": self.read(batch["sentence"]),
            "sentence_tokens": written,
            "round_trip": self.read(written),
            "latent_tokens": latent.masked_fill(alive_until_end(latent) == 0, PADDING),
            "true_sentence": batch["sentence"],
            "x_nats": -self.p_text("x", told, x).log_prob(x),
            "sentence_nats": -log_b,
        }

    # -- pictures -------------------------------------------------------------------------------------------------

    def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str] | tuple[str, Tensor]]:
        """Return the texts of each example: x as read, the sentence, the latent sentence, the sentence as written."""
        found = trace.found
        return {
            "read from the sentence": ("x", found["tokens"]),
            "sentence": ("sentence", found["true_sentence"]),
            "latent sentence": ("sentence", found["latent_tokens"]),
            "written from x": ("sentence", found["sentence_tokens"]),
            "read from what is written": ("x", found["round_trip"]),
        }

    def scenes(self, data: object) -> Mapping[str, Tensor | list[str]]:
        """Return where f looks, with x downwards and the sentence to the right, and samples of sentences with their x.

        The maps are of the first validation texts.
        """
        if not (hasattr(data, "examples") and hasattr(data, "decode")):
            return {}
        rows = torch.arange(min(_MAPS, len(data.examples("val"))))
        batch = {name: values.long().to(self.device) for name, values in data.examples("val").select(rows).items()}
        maps = self.attention(batch["sentence"], batch["x"]).float() * (batch["x"] != PADDING)[..., None]
        sentences = self.sample_sentences(_MAPS)
        told = zip(data.decode("sentence", sentences.cpu()), data.decode("x", self.read(sentences).cpu()), strict=True)
        maps = maps[:, None].repeat_interleave(_CELL, -2).repeat_interleave(_CELL, -1)  # [n, 1, H, W]
        return {"attention": maps.cpu(), "samples": [f"{sentence} => {x}" for sentence, x in told]}
