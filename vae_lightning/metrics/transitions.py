"""Scores of a world model: whole next states, the end of episodes, and dreams of many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vae_lightning.data import DataModule, Mazes
from vae_lightning.metrics.evaluator import Evaluator, Finding
from vae_lightning.metrics.latents import update_mean, with_stderr
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.models import LatentVariableModel
from vae_lightning.synthetic import mazes
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

_NEEDED = ("state", "action", "reward", "done")
_TURNS = ("intended", "right", "opposite", "left")
_CLOCKWISE = torch.tensor([0, 2, 3, 1])  # of up, down, left, right
_OPEN = 3  # neighbours of a cell, of which at most one is blocked: each outcome then tells the move that led to it


class TransitionScores(Evaluator):
    """Scores of the steps that a model dreams (`Trace.found`: dreamt_state, dreamt_reward, dreamt_done) and of dreams.

    Use it for world models, whose batch holds `state`, `action`, `reward` and `done` beside the next state x. A step is
    dreamt without a look at x. Accuracy by cell and accuracy of done are left out, because a model that never moves and
    never ends has nearly 1 of both. `<half>` is `unseen` for worlds that training has not, `seen` for unseen pairs of
    state and action of its worlds, and `all` where the batch does not tell them apart (`seen` [B]).

    - `exact/<half>`: the share of steps whose whole next state is right, of states of whole numbers; also of the steps
      that change the state (`exact/<half>_moved`) and of those that do not (`exact/<half>_blocked`).
    - `copy/<half>`: the same share for "nothing changes".
    - `state_error/<half>`, `copy_error/<half>`: the root mean squared error of states of real numbers, and that of
      "nothing changes".
    - `done_precision`, `done_recall`: of the steps that are dreamt to end, and of those that end.
    - `reward_error`: the mean absolute error, of the steps that end (`/terminal`) and of the others (`/other`).
    - `dream_length`: the mean number of steps before the first invalid state, of dreams with random actions that end
      with done, at an invalid state or after `num_steps`. `invalid_states`: the share of dreamt states that are
      invalid. `dreams_ended_by_done`: the share of dreams that reach an end.
    - `slip/<turn>` and `slip_true/<turn>`: in mazes where an action may slip, the frequencies of the moves that dreams
      make at cells with 3 open neighbours or more, by their turn from the chosen action, and the true ones.
      `slip/none`: of dreamt states that no move leads to. `slip_error`: the largest difference.
    - `exact_log_likelihood`: log p(s', reward, done|s, a) if z is enumerated, to be compared with `elbo`.

    Args:
        num_dreams: The number of dreams.
        num_steps: The largest number of steps of a dream.
        num_draws: The least number of draws for the frequencies of slips.
        seed: The seed of the dreams.

    Raises:
        UserError: if a number is below 1.
    """

    units: ClassVar[Mapping[str, str]] = {
        "exact": "share of steps, 1 at best",
        "copy": "share of steps",
        "state_error": "units of the state",
        "copy_error": "units of the state",
        "done_precision": "share, 1 at best",
        "done_recall": "share, 1 at best",
        "reward_error": "units of the reward",
        "dream_length": "steps",
        "invalid_states": "share of dreamt states",
        "dreams_ended_by_done": "share of dreams",
        "slip": "share of draws",
        "slip_true": "probability",
        "slip_error": "probability",
        "slip_draws": "draws",
        "exact_log_likelihood": "nats per example",
    }

    def __init__(self, num_dreams: int = 100, num_steps: int = 200, num_draws: int = 4000, seed: int = 0) -> None:
        for name, value in (("num_dreams", num_dreams), ("num_steps", num_steps), ("num_draws", num_draws)):
            if value < 1:
                raise UserError(f"TransitionScores: {name} is {value}; it must be at least 1")
        self.num_dreams, self.num_steps, self.num_draws, self.seed = num_dreams, num_steps, num_draws, seed

    def why_not_of_batch(self, trace: Trace, batch: Batch) -> str | None:
        missing = [name for name in _NEEDED if name not in batch]
        if missing:
            return f"the batch has no {', '.join(missing)}"
        return None if "dreamt_state" in trace.found else "the model dreams no step (Trace.found has no dreamt_state)"

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._model: Any = model
        self._data: Any = data
        self._means: dict[str, MeanAndError] = {}
        self._counts: dict[str, MeanAndError] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        x, state, found = batch["x"], batch["state"], trace.found
        halves = {"all": torch.ones_like(batch["done"], dtype=torch.bool)}
        if "seen" in batch:
            halves = {"unseen": ~batch["seen"].bool(), "seen": batch["seen"].bool()}
        for half, rows in halves.items():
            if x.is_floating_point():
                self._update_errors(half, found["dreamt_state"][rows], x[rows], state[rows])
            else:
                self._update_exact(half, found["dreamt_state"][rows], x[rows], state[rows])
        ends, dreamt = batch["done"] > 0.5, found["dreamt_done"].bool()
        counts = torch.stack((ends & dreamt, ~ends & dreamt, ends & ~dreamt), 1)
        update_mean(self._counts, "done", counts.double())
        error = (found["dreamt_reward"] - batch["reward"]).abs().double()
        update_mean(self._means, "reward_error/terminal", error[ends])
        update_mean(self._means, "reward_error/other", error[~ends])
        if trace.log_shares is not None and not trace.continuous():
            log_p = trace.log_weight().logsumexp(0) - math.log(trace.num_samples)
            update_mean(self._means, "exact_log_likelihood", log_p)

    def _update_exact(self, half: str, dreamt: Tensor, x: Tensor, state: Tensor) -> None:
        exact, copied = _equal(dreamt, x).double(), _equal(state, x)
        for name, values in (
            (f"exact/{half}", exact),
            (f"exact/{half}_moved", exact[~copied]),
            (f"exact/{half}_blocked", exact[copied]),
            (f"copy/{half}", copied.double()),
        ):
            update_mean(self._means, name, values)

    def _update_errors(self, half: str, dreamt: Tensor, x: Tensor, state: Tensor) -> None:
        for name, guess in ((f"state_error/{half}", dreamt), (f"copy_error/{half}", state)):
            update_mean(self._counts, name, _flat((guess - x).double().square()).mean(1))

    def compute(self) -> dict[str, Finding]:
        results: dict[str, Finding] = {}
        for name, mean in self._means.items():
            results |= with_stderr(name, mean)
        for name, mean in self._counts.items():
            if name != "done":
                results[name] = mean.compute()[0].sqrt().item()
        hit, wrong, missed = self._counts["done"].compute()[0].tolist()
        results["done_precision"] = hit / (hit + wrong) if hit + wrong else math.nan
        results["done_recall"] = hit / (hit + missed) if hit + missed else math.nan
        with torch.no_grad():  # every rank dreams the same
            results |= self._dreams() if hasattr(self._data, "starts") else {}
            results |= self._slips() if isinstance(self._data, Mazes) and self._data.slip > 0 else {}
        return {name: value for name, value in results.items() if not (isinstance(value, float) and math.isnan(value))}

    def _dreams(self) -> dict[str, Finding]:
        """Dream from first states of test under random actions."""
        random = torch.Generator().manual_seed(self.seed)
        state = self._data.starts("test", self.num_dreams, self.seed).to(self._model.device)
        valid_steps, invalid, done = 0, 0, 0
        for _ in range(min(self.num_steps, self._data.cap)):
            action = torch.randint(self._model.num_actions, (len(state),), generator=random).to(state.device)
            dreamt = self._model.step(state, action, random)
            valid = self._data.is_valid(dreamt.state)
            valid_steps, invalid = valid_steps + int(valid.sum()), invalid + int((~valid).sum())
            done += int((valid & dreamt.done).sum())
            state = dreamt.state[valid & ~dreamt.done]
            if not len(state):
                break
        return {
            "dream_length": valid_steps / self.num_dreams,
            "invalid_states": invalid / max(1, valid_steps + invalid),
            "dreams_ended_by_done": done / self.num_dreams,
        }

    def _slips(self) -> dict[str, Finding]:
        """Compare the moves that are dreamt with the true ones, at cells where each outcome tells the move."""
        fields = self._data.examples("test").fields
        cells = fields["state"].cpu().numpy()
        rows = torch.from_numpy(mazes.open_neighbours(cells).sum(1) >= _OPEN)
        state, action = fields["state"].cpu()[rows], fields["action"].cpu()[rows]
        if not len(state):
            return {}
        moved = [mazes.step(state.numpy(), torch.full_like(action, move).numpy())[0] for move in range(len(_CLOCKWISE))]
        outcomes = torch.stack([torch.from_numpy(one) for one in moved], 1).long()  # [N, 4, n, n]
        random, counts = torch.Generator().manual_seed(self.seed), torch.zeros(len(_TURNS) + 1)
        rounds = -(-self.num_draws // len(state))
        for _ in range(rounds):
            dreamt = self._model.step(state.to(self._model.device).long(), action.to(self._model.device), random).state
            hits = (outcomes == dreamt.cpu()[:, None]).flatten(2).all(2)  # [N, 4], at most one move
            turn = (_CLOCKWISE[hits.long().argmax(1)] - _CLOCKWISE[action]) % len(_TURNS)
            counts += torch.bincount(torch.where(hits.any(1), turn, len(_TURNS)), minlength=len(counts))
        found = (counts / counts.sum()).tolist()
        true = [*mazes.action_probabilities(torch.zeros(1, dtype=torch.long).numpy(), self._data.slip)[0].tolist(), 0.0]
        results: dict[str, Finding] = {}
        for name, share, probability in zip((*_TURNS, "none"), found, true, strict=True):
            results |= {f"slip/{name}": share, f"slip_true/{name}": probability}
        differences = [abs(share - probability) for share, probability in zip(found, true, strict=True)]
        return {**results, "slip_error": max(differences), "slip_draws": float(rounds * len(state))}


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Whether states are equal, each as a whole: bool [B]."""
    return _flat(a == b).all(1)


def _flat(values: Tensor) -> Tensor:
    """Values [B, *x_shape] as [B, D]: D is 1 of states that are a number, and known of an empty half too."""
    return values.reshape(len(values), math.prod(values.shape[1:]))
