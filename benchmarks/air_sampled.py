"""AIR with a sampled count beside AIR: `python -m benchmarks.air_sampled --seeds 0 1 2 --steps 1600`.

A recorded experiment and no feature. Both train the network of configs/air/digits.yaml on its canvases. `sampled` draws
the count and has the gradient of q(n) by the score function, with a learned baseline (NVIL, Mnih & Gregor 2014);
`enumerated` is the model as it is, with its floor and without. Evaluation is the same for all.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from benchmarks.machine import conditions, machine
from vae_lightning.__main__ import keep_memory
from vae_lightning.data import MultiDigits
from vae_lightning.data.module import Split
from vae_lightning.distributions import Family
from vae_lightning.models import AIR
from vae_lightning.models.counts import log_count, mixed
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO

CONFIG = Path(__file__).parent.parent / "configs/air/digits.yaml"
WHAT = {
    "sampled": "count sampled, score function, learned baseline; no floor",
    "enumerated": "count enumerated; no floor",
    "enumerated_floor": "count enumerated, floor of the config (configs/air/digits.yaml as it is)",
}
REACHED = 0.95
BASELINE_RATE = 5e-3
BATCH_SIZE = 64
KEPT = 0.8  # the share of the running mean of the signal that a step keeps; the value of Mnih & Gregor

Loss = Callable[[Tensor, int], Tensor]


class SampledCount(nn.Module):
    """The bound of an AIR whose count is drawn, and its gradient by the score function.

    The count is drawn in log p(x|z, n) alone. KL(q(n|z) || p(n)) and the KL of where and what are in closed form, the
    latter weighted by P(n >= i|z).

    The baseline of decision i (to continue or to stop) is a network of x plus a running mean of the signal. It does not
    know the decision, so that it changes no expectation. The signal is not divided by its deviation, which NVIL does
    where every gradient is a score function's; here most of the gradient is pathwise.

    Args:
        model: The network, its priors and its likelihood.
    """

    centre: Tensor

    def __init__(self, model: AIR) -> None:
        super().__init__()
        self.model = model
        self.baseline = MLP(model.image_shape, (model.num_steps,), hidden_sizes=(128,))
        self.register_buffer("centre", torch.zeros(()))

    def losses(self, x: Tensor, n: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what trains the model and what trains the baseline: [B] each.

        The gradient of the first is, in expectation over n, that of -ELBO for the drawn where and what. Its value is
        no bound.

        Args:
            x: [B, C, H, W].
            n: The counts, int64 [B]. None: drawn from q(n|z).
        """
        steps = self.model.attend(x)
        where, what = steps.where[0], steps.what[0]  # [B, N, ...]
        log_go, log_stop = mixed(steps.logits[0], 0.0)
        q_n = Categorical(logits=log_count(log_go, log_stop))
        n = q_n.sample() if n is None else n
        log_likelihood = self.model.decode({"n": n, "z_where": where, "z_what": what}).log_prob(x)  # [B]
        kl_where = kl_divergence(
            self.model.where_family(steps.where_features[0]), self.model.where_family(self.model.where_start)
        )
        kl_what = kl_divergence(self.model.what_family(steps.what_features[0]), self.model.prior_what())
        kl = kl_divergence(q_n, self.model.count_prior()) + (log_go.cumsum(-1).exp() * (kl_where + kl_what)).sum(-1)
        i = torch.arange(self.model.num_steps, device=x.device)
        taken, reached = i < n[:, None], i <= n[:, None]  # [B, N]
        signal = log_likelihood.detach()[:, None] - self.centre - self.baseline(x)  # [B, N]
        score = (reached * signal.detach() * torch.where(taken, log_go, log_stop)).sum(-1)
        if self.training:
            self.centre = self.centre.lerp(log_likelihood.detach().mean(), 1 - KEPT)
        return kl - log_likelihood - score, (reached * signal.square()).sum(-1)


# -- the network and the canvases of the config -----------------------------------------------------------------------


def from_config(**model_settings: Any) -> tuple[AIR, MultiDigits]:
    """Return the model and the data of configs/air/digits.yaml.

    Args:
        model_settings: Arguments of AIR that replace those of the file.
    """
    parser = ArgumentParser()
    parser.add_subclass_arguments(AIR, "model")
    parser.add_subclass_arguments(MultiDigits, "data")
    config = yaml.safe_load(CONFIG.read_text())
    model, data = config["model"], config["data"]
    shape = [1, data["init_args"]["canvas_size"], data["init_args"]["canvas_size"]]
    model["init_args"] = {**model["init_args"], "image_shape": shape, **model_settings}
    made = parser.instantiate(parser.parse_object({"model": model, "data": data}))
    return made.model, made.data


def canvases(data: MultiDigits, split: Split) -> dict[str, Tensor]:
    """Return `x` in [0, 1], [B, 1, H, W], and `count`, [B]."""
    fields, max_value = data.draw(split)
    return {"x": fields["x"].float() / max_value, "count": fields["count"]}


# -- one run ----------------------------------------------------------------------------------------------------------


def contender(name: str, seed: int, **settings: Any) -> tuple[AIR, Loss, torch.optim.Optimizer]:
    """Return a new model, its loss of a batch at a step, and its optimiser.

    Args:
        name: One of `WHAT`.
        seed: The seed of the weights.
        settings: Arguments of AIR that replace those of the config.
    """
    torch.manual_seed(seed)
    model, _ = from_config(**settings, **({} if name == "enumerated_floor" else {"floor": 0.0}))
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    loss: Loss = partial(_enumerated_loss, model, ELBO())
    if name == "sampled":
        sampled = SampledCount(model)
        groups.append({"params": list(sampled.baseline.parameters()), "lr": BASELINE_RATE})
        loss = partial(_sampled_loss, sampled)
    return model, loss, torch.optim.Adam(groups, 1e-3, fused=True)


def _enumerated_loss(model: AIR, objective: ELBO, x: Tensor, step: int) -> Tensor:
    return objective(model.trace({"x": x}, step=step), step)["loss"].mean()


def _sampled_loss(sampled: SampledCount, x: Tensor, _: int) -> Tensor:
    of_model, of_baseline = sampled.losses(x)
    return (of_model + of_baseline).mean()  # no weight is in both


@torch.no_grad()
def evaluated(model: AIR, test: dict[str, Tensor]) -> dict[str, Any]:
    """Return the share of greedy counts that are right, who is taken for whom, and the ELBO with n summed over."""
    model.eval()
    trace = model.trace({"x": test["x"]})
    elbo = ELBO()(trace, 0)["elbo"].mean().item()
    model.train()
    pairs = test["count"] * (model.num_steps + 1) + trace.found["count"]
    rows = int(test["count"].max()) + 1
    confusion = torch.bincount(pairs, minlength=rows * (model.num_steps + 1)).view(rows, -1)
    accuracy = (trace.found["count"] == test["count"]).double().mean().item()
    return {"count_accuracy": accuracy, "elbo": elbo, "confusion": confusion.tolist()}


def run(
    name: str, seed: int, steps: int, every: int, train: Tensor, test: dict[str, Tensor], **settings: Any
) -> dict[str, Any]:
    """Train one contender and evaluate it every `every` steps.

    Args:
        name: One of `WHAT`.
        seed: The seed of weights, batches and samples.
        steps: The number of steps.
        every: The number of steps between two evaluations; the last step is evaluated, too.
        train: [M, C, H, W].
        test: As `canvases` gives it.
        settings: Arguments of AIR that replace those of the config.
    """
    model, loss_of, optimizer = contender(name, seed, **settings)
    checks, spent, begun = [], 0.0, time.process_time()
    for step, index in zip(range(1, steps + 1), _batches(len(train), BATCH_SIZE), strict=False):
        loss = loss_of(train[index], step - 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        if step % every == 0 or step == steps:
            spent += time.process_time() - begun
            checks.append({"step": step, "minutes": spent / 60, **evaluated(model, test)})
            begun = time.process_time()
    return {"contender": name, "seed": seed, "checks": checks}


def _batches(count: int, batch_size: int) -> Iterator[Tensor]:
    while True:
        yield from (index for index in torch.randperm(count).split(batch_size) if len(index) == batch_size)


# -- the files --------------------------------------------------------------------------------------------------------


def said(one: dict[str, Any]) -> list[str]:
    """Return the cells of a run's row in the table."""
    *_, last = one["checks"]
    accuracies = [f"{100 * check['count_accuracy']:.1f}" for check in one["checks"]]
    return [one["contender"], str(one["seed"]), *accuracies, f"{last['elbo']:.1f}", f"{last['minutes']:.2f}"]


def page(results: dict[str, Any]) -> str:
    """Return the Markdown page of the results."""
    runs = results["runs"]
    at = [f"% at {check['step']:,}" for check in runs[0]["checks"]]
    table = [["contender", "seed", *at, "ELBO, nats", "minutes"]]
    table += [["---"] * len(table[0]), *map(said, runs)]
    besides = f", but for p(n), proportional to {results['rho']}^n" if "rho" in results else ""
    summary = []
    for name, what in WHAT.items():
        last = [one["checks"][-1]["count_accuracy"] for one in runs if one["contender"] == name]
        good = sum(accuracy >= REACHED for accuracy in last)
        summary.append(f"- `{name}`: {what}. At least {REACHED:.0%} at the end: {good} of {len(last)} seeds.")
    lines = [
        "# AIR with a sampled count, beside the enumerated one",
        "",
        *(f"- {name}: {value}" for name, value in {**results["machine"], **results["header"]}.items()),
        "",
        "Count accuracy on the test canvases (greedy, at posterior means), by training steps; the ELBO at the end",
        "(n summed over in each); minutes of processor time of the training. The network, the canvases and p(n) are",
        f"those of configs/air/digits.yaml{besides}. All start at the same weights.",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        *summary,
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.air_sampled", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--every", type=int, default=400, help="steps between two evaluations; default: 400")
    parser.add_argument("--rho", type=float, help="p(n) proportional to rho^n; default: p(n) of the config")
    parser.add_argument("--only", nargs="+", choices=list(WHAT), default=list(WHAT), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    args = parser.parse_args(arguments)
    keep_memory()
    Family.validate_args = False  # as for users
    command = ["python", "-m", "benchmarks.air_sampled", *(sys.argv[1:] if arguments is None else arguments)]
    header = {"measured": time.strftime("%Y-%m-%d %H:%M"), "command": shlex.join(command), **conditions()}
    results: dict[str, Any] = {"machine": machine(), "header": header, "runs": []}
    settings: dict[str, Any] = {}
    if args.rho is not None:
        results["rho"] = args.rho
        settings["count_prior"] = {"class_path": "vae_lightning.models.DecayingCount", "init_args": {"rho": args.rho}}
    _, data = from_config()
    train, test = canvases(data, "train")["x"], canvases(data, "test")
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.only:
            results["runs"].append(run(name, seed, args.steps, args.every, train, test, **settings))
            print(" | ".join(said(results["runs"][-1])), flush=True)
            (args.out / "air_sampled.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "air_sampled.md").write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
