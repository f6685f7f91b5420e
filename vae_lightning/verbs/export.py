"""`export RUN --format onnx`: write the encoder and the decoder, or the whole model, for other programs.

`onnx` and `pt2` write two files, encoder (x to mean and scale of q(z|x)) and decoder (z to the mean of p(x|z)), with a
free batch size. `safetensors` writes the weights with the model's config, `hub` a folder for the Hugging Face hub.
Every file is compared with the model before it is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from vae_lightning.data.loading import data_of
from vae_lightning.data.texts import TextPairs
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.export_files import (
    BATCH_SIZES,
    TOLERANCE,
    export_onnx,
    export_pt2,
    run_onnx,
    run_pt2,
    worst_difference,
)
from vae_lightning.models.exporting import Part, PartDiffersError, decoder_of, encoder_of, flows_of
from vae_lightning.models.loading import load_model
from vae_lightning.models.weights_file import (
    FILE,
    config_of,
    from_safetensors,
    import_extra,
    reload_difference,
    to_safetensors,
)
from vae_lightning.noise import reseed
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.loader import first_images
from vae_lightning.types import Batch, UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, add_run, add_seed, not_written
from vae_lightning.verbs._card import card, read_recipe, read_results

_PACKAGES = {
    "onnx": ("export", ("onnx", "onnxscript", "onnxruntime")),
    "pt2": ("export", ()),
    "safetensors": ("export", ("safetensors",)),
    "hub": ("hub", ("safetensors",)),
}
_NUM_EXAMPLES = max(BATCH_SIZES)


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_run(parser)
    formats = "onnx (onnxruntime), pt2 (torch alone), safetensors (weights and config), hub (files for huggingface.co)"
    parser.add_argument("--format", required=True, choices=tuple(_PACKAGES), help=formats)
    add_output(parser, "the folder to write to; default: export in the run's folder")
    add_seed(parser, "the latents that the files are compared at")
    parser.add_argument("--upload", metavar="REPO", help="with --format hub: the repository to upload to, user/name")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Export a run's model, and print each file with its largest difference from the model.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    _check_packages(arguments.format, arguments.upload)
    checkpoint = best_checkpoint(arguments.run)
    model = load_model(checkpoint, trusted).float()
    batch, words, origin = _examples(model, checkpoint, trusted)
    reseed(model.device, arguments.seed)
    place = checkpoint.absolute().parent.parent
    folder = arguments.output or place / "export" / ("hub" if arguments.format == "hub" else "")
    if arguments.format in ("onnx", "pt2"):
        _export_parts(model, batch, arguments.format, folder, origin)
        return
    contents = to_safetensors(model)
    again = from_safetensors(contents, folder / FILE, trusted)
    again.to(model.dtype)
    sizes = [{name: values[torch.arange(n) % len(values)] for name, values in batch.items()} for n in BATCH_SIZES]
    worst = max(reload_difference(model, again, rows, arguments.seed) for rows in sizes)
    _check(worst, folder / FILE)
    files = {FILE: contents, **words}
    if arguments.format == "hub":
        files |= _hub_files(model, place)
    for name, text in files.items():
        _write(folder / name, text)
        print(f"{'written':<12}{folder / name}  {_size(text)}", flush=True)
    print(f"{'difference':<12}{worst:.1e} at most from the model, loaded again ({_conditions(origin)})", flush=True)
    if arguments.upload:
        print(f"{'uploaded':<12}{_upload(folder, arguments.upload)}", flush=True)


def _check_packages(form: str, upload: str | None) -> None:
    extra, names = _PACKAGES[form]
    if upload and form != "hub":
        raise UserError(f"export: --upload {upload} needs --format hub; {form} writes files for other programs")
    names += ("huggingface_hub",) if upload else ()
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"export: --format {form} needs {', '.join(missing)}, which is not installed: pip install "
            f"'vae_lightning[{extra}]'"
        )
    for name in names:
        import_extra(name, extra, f"export: --format {form}")


def _examples(model: LatentVariableModel, checkpoint: Path, trusted: list[str]) -> tuple[Batch, dict[str, bytes], str]:
    """Return what the run's data give: examples to trace and to compare with, and of texts a file of their words.

    The third entry is the origin of the examples: test examples, else random images.
    """
    try:
        data = data_of(checkpoint, trusted, prepare=False)
        batch = first_images(data.test_dataloader(), _NUM_EXAMPLES)
        words = {field: words.words for field, words in data.words.items()} if isinstance(data, TextPairs) else {}
        files = {"words.json": json.dumps(words, indent=1, ensure_ascii=False).encode() + b"\n"} if words else {}
        return {name: values.cpu() for name, values in batch.items()}, files, "test examples"
    except (UserError, OSError, RuntimeError) as error:
        shape = model.hparams.get("image_shape")
        if shape is None:
            raise UserError(f"export needs an example of x, and the run's data are not here: {error}") from error
    x = torch.rand(_NUM_EXAMPLES, *shape, generator=torch.Generator().manual_seed(0)).round()
    label = torch.zeros(_NUM_EXAMPLES, dtype=torch.long)
    return {"x": x, "label": label}, {}, "random images: the run's data are not here"


# -- encoder and decoder ----------------------------------------------------------------------------------------------


def _export_parts(model: LatentVariableModel, batch: Batch, form: str, folder: Path, origin: str) -> None:
    """Write the parts that the model has, all or none; print why it lacks the others; raise if it has none."""
    export, function_of = (export_onnx, run_onnx) if form == "onnx" else (export_pt2, run_pt2)
    parts, refusals = _parts(model, batch)
    if not parts:
        raise UserError(f"export: {refusals[0]}; --format safetensors serves every model")
    files = []
    for (
        part
    ) in parts:  # all are compared before one is written: a new encoder beside an old decoder would decode wrongly
        contents, path = export(part), folder / f"{part.name}.{form}"
        worst = worst_difference(part, function_of(contents))
        _check(worst, path)
        files.append((part, path, contents, worst))
    for part, path, contents, worst in files:
        print(*(f"{'note':<12}{note}" for note in part.notes), sep="\n", end="\n" * bool(part.notes), flush=True)
        _write(path, contents)
        print(f"{part.name:<12}{path}  {_size(contents)}\n{'':<12}{_signature(part)}")
        print(f"{'':<12}differs from the model by {worst:.1e} at most ({_conditions(origin)})", flush=True)
    for refusal in refusals:
        print(f"{'left out':<12}{refusal}", flush=True)


def _parts(model: LatentVariableModel, batch: Batch) -> tuple[list[Part], list[str]]:
    """Return the parts that the model has, and a line for each that it lacks; raise if one is wrong."""
    parts: list[Part] = []
    refusals = []
    makers: tuple[Callable[[], list[Part]], ...] = (
        lambda: [encoder_of(model, batch)],
        partial(flows_of, model, batch),
        lambda: [decoder_of(model, batch)],
    )
    for make in makers:
        try:
            parts += make()
        except PartDiffersError as error:
            raise UserError(f"export: {error}; --format safetensors serves every model") from error
        except UserError as error:
            refusals.append(str(error))
    return parts, list(dict.fromkeys(refusals))


def _signature(part: Part) -> str:
    """Names and shapes: x [batch, 1, 8, 8] -> z_mean, z_scale [batch, 8]."""
    rows = part.rows(2)
    with torch.no_grad():
        outputs = part.module(*rows)
    texts = []
    for names, values in ((part.inputs, rows), (part.outputs, outputs)):
        shapes = (f"[{', '.join(['batch', *map(str, value.shape[1:])])}]" for value in values)
        texts.append(", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)))
    return " -> ".join(texts)


def _check(worst: float, path: Path) -> None:
    if not worst <= TOLERANCE:
        limit = f"above {TOLERANCE:g}: nothing is written"
        refusal = UserError(f"{path}: differs from the model by {worst:.1e}, which is {limit}")
        refusal.exit_code = 1
        raise refusal


def _conditions(origin: str) -> str:
    *first, last = BATCH_SIZES
    return f"batches of {', '.join(map(str, first))} and {last}; {origin}"


def _size(contents: bytes) -> str:
    return f"{len(contents) / 1e6:.1f} MB" if len(contents) >= 1e6 else f"{len(contents) / 1e3:.1f} kB"


def _write(path: Path, contents: bytes) -> None:
    try:
        write_whole(path, contents)
    except OSError as error:
        raise not_written(path, error, "folder") from error


# -- the hub ----------------------------------------------------------------------------------------------------------


def _hub_files(model: LatentVariableModel, run: Path) -> dict[str, bytes]:
    """Return config.json and the card README.md."""
    results, recipe = read_results(run), read_recipe(run)
    config = {**config_of(model), "recipe": recipe}
    name = f"{run.parent.name}/{run.name}" if run.parent.name else run.name
    text = card(name, type(model).__name__, results, recipe)
    return {"config.json": json.dumps(config, indent=2).encode() + b"\n", "README.md": text.encode()}


def _upload(folder: Path, repository: str) -> str:
    """Upload the folder and return the address; the user is logged in by `hf auth login`."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Upload a model")
    except Exception as error:  # no login, no network, a name that the hub refuses: each is an exception of its own
        reason = " ".join(str(error).split())[:200]
        refusal = UserError(f"export: {repository} could not be uploaded ({reason}); the files are in {folder}")
        refusal.exit_code = 1
        raise refusal from error
    return str(done)


COMMAND = Command(make_parser, run)
