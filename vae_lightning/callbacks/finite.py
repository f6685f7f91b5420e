"""Skip an optimizer step whose loss or gradient is not finite, on every rank."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import Optimizer

from vae_lightning.types import UserError

_LARGEST = torch.finfo(torch.float32).max


class FiniteSteps(pl.Callback):
    """Skips an optimizer step if the loss or a gradient is not finite, or if |gradient| > `max_grad_norm`.

    The norm is that of the gradient averaged over the ranks, before clipping. If the loss is not finite on one rank,
    the norm is not finite on any rank (see `LatentVariableModel.loss_and_terms`), so all ranks decide alike without
    communication. Schedules continue. The run logs `train/grad_norm` and `train/skipped_steps`.

    On a GPU the host does not wait if the optimizer is fused (`fused: true`): the optimizer reads the decision on the
    device, and the host reads the number of skipped steps every `stop_after` steps. With another optimizer the host
    waits at each step. Under 16-mixed the loss scaler skips steps to find its scale; `max_grad_norm` has no effect.

    The rule is from Child, "Very Deep VAEs ...", 2021 (https://arxiv.org/abs/2011.10650), appendix.

    Args:
        max_grad_norm: The largest norm of a gradient, in units of the loss; see train/grad_norm before you set this.
        stop_after: The run stops with exit code 1 after this many skipped steps in a row.
    """

    def __init__(self, max_grad_norm: float | None = None, stop_after: int = 100) -> None:
        if stop_after < 1 or (max_grad_norm is not None and not max_grad_norm > 0):
            raise UserError(f"finite: max_grad_norm {max_grad_norm} and stop_after {stop_after} must be positive")
        self.max_grad_norm, self.stop_after = max_grad_norm, stop_after
        self._skipped = self._in_a_row = torch.zeros((), dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": int(self._skipped), "in_a_row": int(self._in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skipped = torch.tensor(state_dict["skipped"])
        self._in_a_row = torch.tensor(state_dict["in_a_row"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._skipped, self._in_a_row = self._skipped.to(pl_module.device), self._in_a_row.to(pl_module.device)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients)
        scaled = trainer.precision == "16-mixed"
        limit = _LARGEST if self.max_grad_norm is None or scaled else self.max_grad_norm
        waits = norm.device.type == "cpu"
        if not (waits and norm.item() <= limit and not self._in_a_row):  # the common case costs only the norm
            bad = ~(norm <= limit)  # ~(<=) and not >, because a NaN must count as bad
            if not scaled:
                _skip(optimizer, bad, waits)
            self._count(bad)
            if waits or (trainer.global_step + 1) % self.stop_after == 0:
                self._stop_if_hopeless(trainer)
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and (trainer.global_step + 1) % interval == 0:
            pl_module.log("train/grad_norm", norm)
            pl_module.log("train/skipped_steps", self._skipped.float())

    def _count(self, bad: Tensor) -> None:
        self._skipped = self._skipped + bad
        self._in_a_row = (self._in_a_row + 1) * bad

    def _stop_if_hopeless(self, trainer: pl.Trainer) -> None:
        if self._in_a_row >= self.stop_after:
            raise UserError(
                f"the loss or its gradient was not finite, or too large, for {int(self._in_a_row)} steps in a row "
                f"(now at step {trainer.global_step}): stopped. last.ckpt and best.ckpt are older; a smaller "
                "learning rate or a warm-up may help"
            )


def _skip(optimizer: Optimizer, bad: Tensor, waits: bool) -> None:
    """Make the next step do nothing if `bad`; `waits` says whether the host may read `bad`."""
    if not waits and all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    elif bad:
        optimizer.zero_grad(set_to_none=True)  # an optimizer changes no parameter, and no state, without a gradient
