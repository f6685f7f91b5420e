"""The files that the hub shows of a model: config.json, and a card made from the run's results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vae_lightning.metrics.formatting import value_and_error

_OF_THE_BOUND = ("nll", "elbo", "kl", "nll_bpd")
_NUMBERS = ("nll", "elbo", "log_likelihood", "kl", "nll_bpd", "psnr", "ssim")
_NEEDED = {"max_epochs": None, "max_steps": -1, "max_time": None, "precision": None, "gradient_clip_val": None}
_NEEDED |= {"accumulate_grad_batches": 1}  # settings that change what is learnt, and the values that change nothing


def read_results(run: Path) -> dict[str, Any]:
    """Return what results.json of a run says; empty if the run was not tested.

    Args:
        run: The run's folder.
    """
    try:
        found = json.loads((run / "results.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_recipe(run: Path) -> dict[str, Any]:
    """Return the settings that train such a model again, without folders and accounts; empty without config.yaml.

    Args:
        run: The run's folder.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        trainer = {name: config["trainer"].get(name) for name in _NEEDED}
        parts = {name: config[name] for name in ("seed_everything", "model", "data", "nll") if name in config}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}
    kept = {name: value for name, value in trainer.items() if value != _NEEDED[name]}
    recipe: dict[str, Any] = _without_folders({**parts, "trainer": kept})
    return recipe


def _without_folders(value: Any) -> Any:
    """Leave out the options that end in `_dir`: they are places on the machine of the training."""
    if isinstance(value, dict):
        return {name: _without_folders(one) for name, one in value.items() if not str(name).endswith("_dir")}
    return [_without_folders(one) for one in value] if isinstance(value, list) else value


def card(name: str, model: str, results: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Return the card README.md of a model: its numbers with their conditions, how to load it, how to train it again.

    Args:
        name: The title.
        model: The class of the model.
        results: `read_results` of the run.
        recipe: `read_recipe` of the run.
    """
    head = "---\nlibrary_name: vae_lightning\ntags:\n- variational-autoencoder\n- pytorch-lightning\n---\n"
    config = yaml.safe_dump(dict(recipe), sort_keys=False).rstrip() or "# the run's config.yaml was not found"
    return f"""{head}
# {name}

A {model}, trained with vae_lightning.

{_numbers(results)}

## Use

```python
from vae_lightning.models import load_safetensors

model = load_safetensors("model.safetensors")  # or this folder; a package of your own: trusted=["my_pkg"]
samples = model.sample(16)
```

## Train it again

Save this as `train.yaml`. The command is `vae-lightning train -c train.yaml`.

```yaml
{config}
```
"""


def _numbers(results: Mapping[str, Any]) -> str:
    """The table of numbers and the line of conditions."""
    metrics = results.get("metrics", {})
    meant = [name for name in _NUMBERS if not (results.get("untrained_kl") and name in _OF_THE_BOUND)]
    names = dict.fromkeys([*results.get("measures", []), *meant])
    rows = [(name, metrics.get(f"test/{name}"), metrics.get(f"test/{name}_stderr")) for name in names]
    lines = [
        f"| {_name(name, results)} | {value_and_error(value, error)} | {_unit(name, results)} |"
        for name, value, error in rows
        if value is not None
    ]
    if not lines:
        return "The model was not tested: its run has no results.json."
    table = "\n".join(["| number | value +- standard error | unit |", "| --- | --- | --- |", *lines])
    return f"{table}\n\n{_conditions(results)}"


def _name(name: str, results: Mapping[str, Any]) -> str:
    samples = results.get("nll", {}).get("num_samples")
    return f"test -log p(x), importance sampling with K = {samples}" if name == "nll" else f"test {name}"


def _unit(name: str, results: Mapping[str, Any]) -> str:
    units: Mapping[str, str] = results.get("units", {})
    return units.get(name.partition("/")[0], units.get("default", "nats"))


def _conditions(results: Mapping[str, Any]) -> str:
    """One line: the likelihood, the data and their binarisation, the seed, the machine, the versions."""
    data, settings = results.get("data", {}), results.get("model", {}).get("init_args", {})
    likelihood = settings.get("likelihood")
    facts = [
        f"{data.get('num_images', '?')} test examples of {_class(data)}",
        f"likelihood {_class(likelihood)}" if likelihood else "",
        f"loss: {results['loss_note']}" if results.get("loss_note") else "",
        f"binarisation {results['binarisation']}" if results.get("binarisation") else "",
        f"seed {results.get('seed')}",
        f"precision {results.get('precision')}",
        str(results.get("machine", "")),
        ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items()),
    ]
    return f"Given: {'; '.join(fact for fact in facts if fact)}."


def _class(recipe: Any) -> str:
    path = recipe.get("class_path", "?") if isinstance(recipe, Mapping) else str(recipe)
    return str(path).rpartition(".")[2]
