"""Scores of a model of video that predicts frames: places of objects over time, beside simple predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import ClassVar

import torch
from torch import Tensor

from vae_lightning.data import Billiards, DataModule
from vae_lightning.metrics.evaluator import Evaluator, Finding, objects_from_all_ranks, rank_and_world_size
from vae_lightning.metrics.formatting import with_error
from vae_lightning.metrics.latents import update_mean, with_stderr
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.metrics.motion import (
    WALL,
    closest,
    exchanged,
    in_pairs,
    linear,
    pairs_of,
    reflecting,
    simulated,
    speeds,
)
from vae_lightning.models import LatentVariableModel, PredictsFrames
from vae_lightning.models.rollouts import Rollout
from vae_lightning.noise import reseed
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

_HORIZONS = (1, 2, 4, 8, 10, 16, 24)
_SUMMED = 10  # frames, as in the paper's table
_LATE = (8, 16, 24)  # of the predictions without a model, whose other frames are in the details
_CLAMP = 0.8  # of the linear prediction, as in the paper's code
_LOST = 0.3  # a track whose error at the end is above this is lost
_TOO_NEAR = 0.3  # billiard balls have a diameter of 0.48, so that their centres cannot be so near
_INSIDE = 0.85  # a centre beyond this is outside of the box, whose walls stop a centre at 0.76
_LAST_FRAMES = 10  # over which the speed at the end is measured


class RolloutScores(Evaluator):
    """Scores of the frames that a model of video predicts after the first ones of a test sequence.

    Use it for models of objects that move: they have `predict_frames`, and the batch holds whole sequences with the
    true `positions` [B, T, K, 2]. The first `num_seen` frames are seen. Found objects are paired with true ones once a
    sequence, on the frames seen alone, so that two objects that the model exchanges later count as errors.

    A `<row>` is `mean` (each transition takes its mean), `sampled` (each is drawn), or a prediction without a model
    from the true state of the last frame seen: `linear` (constant velocity, clamped to 0.8), `reflecting` (off the
    walls, not off each other), `last` (nothing moves), and of billiards `simulator` (the rules themselves). After some
    fifty frames of billiards no prediction can be near the truth, and a prediction without motion has a smaller error
    than a prediction with motion. Read an error of late frames only beside the speed.

    - `rollout_error/<row>/<h>`: the distance from the truth at the h-th predicted frame, the mean over objects and
      sequences; `rollout_error/<row>/sum_1_to_10`: its sum over the first ten frames, as in the table of Kossen et al.
      2020 (https://arxiv.org/abs/1910.02425). The details hold the distances of all frames (`rollout_curve`).
    - `rollout_swaps/<row>`: the share of sequences where two objects have changed places within the first 24 frames.
    - `rollout_speed/<row>/<H>`: the mean speed of the last ten of H predicted frames over the true mean speed.
    - `rollout_overlaps/<row>/<H>`: the share of H frames in which two centres are nearer than 0.3.
    - `rollout_inside/<row>/<H>`: the share of centres in H frames whose coordinates are within 0.85.
    - `centre_error`: the distance of `Trace.found["positions"]` from the truth over all frames. `tracks_lost`: the
      share of objects further than 0.3 from the truth in the last frame. `tracks_swapped`: the share of sequences where
      two objects have changed places in some frame.

    Args:
        num_seen: The number of frames seen.
        horizon: The largest number of predicted frames; fewer where the sequences end.
        long_horizon: The number of frames of long roll-outs, of which only the physics is scored; 0 for none.
        num_long: The number of sequences with long roll-outs: the first ones.
        seed: The seed of the long roll-outs.

    Raises:
        UserError: if a number is too small.
    """

    units: ClassVar[Mapping[str, str]] = {
        "rollout_error": "distance, the box is 2 wide",
        "rollout_curve": "distance, the box is 2 wide",
        "rollout_swaps": "share of sequences",
        "rollout_speed": "times the true speed, 1 at best",
        "rollout_overlaps": "share of frames",
        "rollout_inside": "share of centres, 1 at best",
        "centre_error": "distance, the box is 2 wide",
        "tracks_lost": "share of objects",
        "tracks_swapped": "share of sequences",
    }

    def __init__(
        self, num_seen: int = 8, horizon: int = 92, long_horizon: int = 1000, num_long: int = 20, seed: int = 0
    ) -> None:
        limits = {"num_seen": (num_seen, 1), "horizon": (horizon, 2), "num_long": (num_long, 1)}
        for name, (value, least) in {**limits, "long_horizon": (long_horizon, 0)}.items():
            if value < least:
                raise UserError(f"RolloutScores: {name} is {value}; it must be at least {least}")
        self.num_seen, self.horizon, self.long_horizon = num_seen, horizon, long_horizon
        self.num_long, self.seed = num_long, seed

    def why_not_of_model(self, model: LatentVariableModel) -> str | None:
        return None if isinstance(model, PredictsFrames) else "the model predicts no frames (it has no predict_frames)"

    def why_not_of_batch(self, trace: Trace, batch: Batch) -> str | None:
        if "positions" not in batch:
            return "the batch has no positions"
        num_frames, num_objects = batch["positions"].shape[1:3]
        if num_frames < self.num_seen + 2:
            return f"the sequences have {num_frames} frames; {self.num_seen} seen and 2 predicted ones are needed"
        found = trace.found.get("positions")
        if found is not None and found.shape[2] < num_objects:
            return f"the model has {found.shape[2]} objects, and the data {num_objects}"
        return None

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        assert isinstance(model, PredictsFrames)
        self._model, self._device = model, model.device
        self._is_billiards = isinstance(data, Billiards)
        self._means: dict[str, MeanAndError] = {}
        self._first: list[Tensor] = []  # the frames seen of the first sequences, a tensor for each batch of this rank

    def update(self, trace: Trace, batch: Batch) -> None:
        true, seen = batch["positions"].double(), self.num_seen
        x_seen, after = batch["x"][:, :seen], true[:, seen : seen + self.horizon]
        if "positions" in trace.found:
            self._update_tracks(trace.found["positions"].double(), true)
        rows = {
            name: self._paired(self._model.predict_frames(x_seen, after.shape[1], sampled), true[:, :seen])
            for name, sampled in (("mean", False), ("sampled", True))
        }
        for name, places in {**rows, **self._without_model(batch, after.shape[1])}.items():
            self._update_row(name, places, after)
        update_mean(self._means, "true_speed", speeds(true).mean(1))
        self._first.append(x_seen[: self.num_long].cpu())

    def _paired(self, rollout: Rollout, true_seen: Tensor) -> Tensor:
        return in_pairs(rollout.positions.double(), pairs_of(rollout.seen.double(), true_seen))

    def _without_model(self, batch: Batch, horizon: int) -> dict[str, Tensor]:
        """Return the predictions from the true state of the last frame seen, [B, H, K, 2] by the name of the row."""
        places = batch["positions"][:, : self.num_seen].double()
        if "velocities" in batch:
            velocity = batch["velocities"][:, self.num_seen - 1].double()
        else:
            velocity = places[:, -1] - places[:, max(0, self.num_seen - 2)]
        state, wall = (places[:, -1], velocity, horizon), WALL if self._is_billiards else 1.0
        rows = {"linear": linear(*state, _CLAMP), "reflecting": reflecting(*state, wall)}
        rows["last"] = places[:, -1:].expand(-1, horizon, -1, -1)
        return {**rows, "simulator": simulated(*state)} if self._is_billiards else rows

    def _update_row(self, row: str, places: Tensor, true: Tensor) -> None:
        error = (places - true).norm(dim=-1).mean(-1)  # [B, H]
        update_mean(self._means, f"rollout_curve/{row}", error)
        update_mean(self._means, f"rollout_error/{row}/sum_1_to_10", error[:, :_SUMMED].sum(1))
        near = slice(0, _HORIZONS[-1])
        swapped = exchanged(places[:, near], true[:, near], _LOST).any(1)
        update_mean(self._means, f"rollout_swaps/{row}", swapped.double())
        for name, values in _physics(places).items():
            update_mean(self._means, f"rollout_{name}/{row}/{places.shape[1]}", values)

    def _update_tracks(self, found: Tensor, true: Tensor) -> None:
        found = in_pairs(found, pairs_of(found[:, : self.num_seen], true[:, : self.num_seen]))
        error = (found - true).norm(dim=-1)  # [B, T, K]
        update_mean(self._means, "centre_error", error.mean((1, 2)))
        update_mean(self._means, "tracks_lost", (error[:, -1] > _LOST).double().mean(1))
        update_mean(self._means, "tracks_swapped", exchanged(found, true, _LOST).any(1).double())

    def compute(self) -> dict[str, Finding]:
        true_speed = self._means["true_speed"].compute()[0].item()
        results: dict[str, Finding] = {}
        for name, mean in self._means.items():
            if name.startswith("rollout_curve/"):
                results |= _at_horizons(name.removeprefix("rollout_curve/"), mean)
            elif name != "true_speed":
                results |= with_stderr(name, mean)
        results |= self._long() if self.long_horizon else {}
        for name, value in results.items():
            if name.startswith("rollout_speed/") and isinstance(value, float):
                results[name] = value / true_speed if true_speed else math.nan
        if rank_and_world_size()[0] == 0:
            print(table_of(results), flush=True)
        return results

    def _long(self) -> dict[str, Finding]:
        """Roll the first sequences out for many frames: the physics of the roll-outs, the same on every rank."""
        turns = zip_longest(*objects_from_all_ranks(self._first))  # rank r has the batches r, r + W, ...
        parts = [part for part in chain.from_iterable(turns) if part is not None]
        x_seen = torch.cat(parts)[: self.num_long].to(self._device)
        results: dict[str, Finding] = {}
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []), torch.no_grad():
            for row, sampled in (("mean", False), ("sampled", True)):
                reseed(self._device, self.seed)
                places = self._model.predict_frames(x_seen, self.long_horizon, sampled).positions.double()
                for name, values in _physics(places).items():
                    key = f"rollout_{name}/{row}/{self.long_horizon}"
                    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else values.new_tensor(math.nan)
                    results |= {key: values.mean().item(), f"{key}_stderr": error.item()}
        return results


def _physics(places: Tensor) -> dict[str, Tensor]:
    """Return what does not need the truth, one number a sequence: the speed at the end, overlaps, centres inside."""
    return {
        "speed": speeds(places[:, -_LAST_FRAMES - 1 :]).mean(1),
        "overlaps": (closest(places) < _TOO_NEAR).double().mean(1),
        "inside": (places.abs() <= _INSIDE).all(-1).double().mean((1, 2)),
    }


def _at_horizons(row: str, curve: MeanAndError) -> dict[str, Finding]:
    """Return the errors of some frames as numbers, and those of all frames as lists."""
    mean, error = (value.flatten().tolist() for value in curve.compute())
    results: dict[str, Finding] = {f"rollout_curve/{row}": mean, f"rollout_curve_stderr/{row}": error}
    for h in _HORIZONS if row in ("mean", "sampled") else _LATE:
        if h <= len(mean):
            results |= {f"rollout_error/{row}/{h}": mean[h - 1], f"rollout_error/{row}/{h}_stderr": error[h - 1]}
    return results


def table_of(results: Mapping[str, Finding]) -> str:
    """Return the roll-outs and the predictions without a model as a table, each number with its standard error.

    Args:
        results: What `RolloutScores.compute` returned.
    """
    lengths = [name.split("/") for name in results if name.startswith("rollout_speed/") and "stderr" not in name]
    rows, horizons = (list(dict.fromkeys(part)) for part in zip(*(one[1:] for one in lengths), strict=True))
    columns = {f"h = {h}": f"rollout_error/{{}}/{h}" for h in _LATE if f"rollout_error/mean/{h}" in results}
    columns["sum 1..10"] = "rollout_error/{}/sum_1_to_10"
    for h in horizons:
        columns |= {f"speed at {h}": f"rollout_speed/{{}}/{h}", f"overlaps to {h}": f"rollout_overlaps/{{}}/{h}"}
    lines = [["prediction", *columns]]
    lines += [[row, *(_cell(results, column.format(row)) for column in columns.values())] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(results: Mapping[str, Finding], name: str) -> str:
    value, error = (results.get(one) for one in (name, f"{name}_stderr"))
    return with_error(value, error, 3) if isinstance(value, float) and isinstance(error, float) else ""
