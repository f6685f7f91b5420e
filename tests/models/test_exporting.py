"""Encoders and decoders as .pt2 and ONNX files: what each gives, and what exports have stumbled over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

import vae_lightning.distributions as families
from vae_lightning.distributions import IAF, ContinuousBernoulli, FamilyPrior, FamilyRecipe, UniformSphere
from vae_lightning.models import AIR, CVAE, DLGM, HVAE, VAE, BottomUp, ImageColumns, LatentVariableModel
from vae_lightning.models.export_files import TOLERANCE, export_onnx, export_pt2, run_onnx, run_pt2, worst_difference
from vae_lightning.models.exporting import Part, decoder_of, encoder_of, flows_of
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, Network, Shape, UserError

TINY = partial(MLP, hidden_sizes=(8,))
SHAPE = (1, 4, 4)


def batch(n: int = 3) -> Batch:
    return {"x": torch.rand(n, *SHAPE).round(), "label": torch.arange(n) % 10}


def vae(posterior: FamilyRecipe = families.DiagonalNormal, **kwargs: object) -> VAE:
    slots = {"encoder": TINY, "decoder": TINY, "posterior": posterior, **kwargs}
    return VAE(SHAPE, 4, **slots).eval()  # type: ignore[arg-type]


def check(part: Part, export: Callable[[Part], bytes] = export_pt2) -> bytes:
    """Export a part, and compare it with the model on batches of several sizes."""
    contents = export(part)
    worst = worst_difference(part, (run_pt2 if export is export_pt2 else run_onnx)(contents))
    assert worst <= TOLERANCE
    return contents


NETS = {"encoder": TINY, "decoder": TINY}
MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "DLGM": lambda: DLGM(SHAPE, (3, 2), transition=TINY, **NETS),  # type: ignore[arg-type]
    "Ladder": lambda: HVAE(SHAPE, (3, 2), transition=TINY, decoder=TINY),
    "BottomUp": lambda: HVAE(SHAPE, (3, 2), inference=BottomUp, transition=TINY, decoder=TINY),
    "by class": lambda: CVAE(SHAPE, 3, embedding=TINY, **NETS),  # type: ignore[arg-type]
    "by column": lambda: CVAE(SHAPE, 3, partial(ImageColumns, columns=(1,)), embedding=TINY, **NETS),  # type: ignore[arg-type]
}
INPUTS = {
    "DLGM": (["x"], ["z1", "z2"]),
    "Ladder": (["x"], ["z1"]),
    "BottomUp": (["x"], ["z1"]),
    "by class": (["x", "label"], ["z", "label"]),
    "by column": (["x"], ["z", "x"]),
}


@pytest.mark.parametrize("name", ["DLGM", "BottomUp", "by class"])
def test_models_have_their_parts(name: str) -> None:
    model = MODELS[name]().eval()
    encoder, decoder = encoder_of(model, batch()), decoder_of(model, batch())
    assert (list(encoder.inputs), list(decoder.inputs)) == INPUTS[name]
    latents = list(model.infer(batch()))
    assert encoder.outputs == tuple(f"{latent}_{part}" for latent in latents for part in ("mean", "scale"))
    for part in (encoder, decoder):
        check(part)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_its_parts_in_both_formats(name: str) -> None:
    model = MODELS[name]().eval()
    encoder, decoder = encoder_of(model, batch()), decoder_of(model, batch())
    assert (list(encoder.inputs), list(decoder.inputs)) == INPUTS[name]
    for part in (encoder, decoder):
        check(part)
        check(part, export_onnx)


def test_the_files_give_the_numbers_of_the_distributions() -> None:
    model, x = vae(), torch.rand(5, *SHAPE)
    q = model.encode(x)
    mean, scale = run_pt2(check(encoder_of(model, batch())))(x)
    torch.testing.assert_close(mean, q.mean)
    torch.testing.assert_close(scale, q.stddev)
    (x_mean,) = run_pt2(check(decoder_of(model, batch())))(mean)
    torch.testing.assert_close(x_mean, model(x))


# -- what exports have stumbled over ----------------------------------------------------------------------------------


def test_one_example_is_enough_for_a_free_batch_size() -> None:
    """Torch takes a batch of one for a constant."""
    check(encoder_of(vae(), batch(1)))


def test_an_onnx_file_holds_its_weights_and_names_its_free_dimension() -> None:
    proto = onnx.load_from_string(check(encoder_of(vae(), batch()), export_onnx))
    assert [len(one.external_data) for one in proto.graph.initializer] == [0] * len(proto.graph.initializer)
    assert sum(len(one.raw_data) for one in proto.graph.initializer) >= 4 * (16 * 8 + 8 * 8)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {"x": ["batch", *SHAPE], "z_mean": ["batch", 4], "z_scale": ["batch", 4]}


def test_an_encoder_has_no_weights_of_the_decoder() -> None:
    model = vae()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = set(run_pt2(export_pt2(encoder_of(model, batch()))).state_dict())  # type: ignore[attr-defined]
    assert any(name.startswith("model.encoder") for name in names)
    assert not any(name.startswith("model.decoder") for name in names)
    for name, value in model.state_dict().items():  # the model has all of its weights again
        assert torch.equal(before[name], value)
    assert before.keys() == model.state_dict().keys()


class Coded(Network):
    """A network with buffers that are named as an attribute of torch's graph modules, and with noise in training."""

    code: Tensor

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__(in_shape, out_shape)
        size = int(torch.Size(in_shape).numel())
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(size, int(torch.Size(out_shape).numel())))
        self.register_buffer("code", torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.code)


class CodedVAE(VAE):
    code: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(SHAPE, 4, **kwargs)  # type: ignore[arg-type]
        self.register_buffer("code", torch.ones(1))

    def infer(self, batch: Batch):  # type: ignore[no-untyped-def]  # noqa: ANN201
        return super().infer({**batch, "x": batch["x"] * self.code})


def test_a_buffer_may_be_named_code_and_a_model_may_be_in_training() -> None:
    model = CodedVAE(encoder=Coded, decoder=TINY).train()
    check(encoder_of(model, batch()))
    assert all(module.training for module in model.modules())


@pytest.mark.slow
def test_a_buffer_may_be_named_code_in_onnx() -> None:
    check(encoder_of(CodedVAE(encoder=Coded, decoder=TINY), batch()), export_onnx)


def test_a_flow_gives_its_base_and_its_context_and_a_file_of_its_own() -> None:
    model = vae(partial(IAF, hidden_sizes=(8,), context_size=5))
    encoder, (flow,) = encoder_of(model, batch()), flows_of(model, batch())
    assert encoder.outputs == ("z_base_mean", "z_base_scale", "z_context")
    assert "without a mean in closed form" in encoder.notes[0]
    x = batch()["x"]
    base_mean, base_scale, context = run_pt2(check(encoder))(x)
    e = base_mean + base_scale * torch.randn(3, 4)
    (z,) = run_pt2(check(flow))(e, context)
    q = model.encode(x)
    assert isinstance(q, families.flows.Flowed)
    torch.testing.assert_close(z, q.flow(q.context)(e))


NO_FLOWS = ("FullNormal", "LowRankNormal", "RankOneNormal", "Gamma", "Dirichlet", "Categorical", "Laplace")
FLOWS = ("IAF", "RealNVP", "NeuralSplineFlow")


@pytest.mark.parametrize("name", ["LowRankNormal", "Categorical"])  # a Cholesky, and a check of arguments
def test_families_that_exports_have_stumbled_over(name: str) -> None:
    """Distributions check their arguments in this suite; an exported encoder does not."""
    check(encoder_of(vae(_family(name)), batch()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NO_FLOWS, *FLOWS])
def test_every_posterior_goes_to_onnx(name: str) -> None:
    model = vae(_family(name))
    for part in (encoder_of(model, batch()), *flows_of(model, batch())):
        check(part, export_onnx)


def _family(name: str) -> FamilyRecipe:
    recipe: FamilyRecipe = getattr(families, name)
    return partial(recipe, straight_through=True) if name == "Categorical" else recipe  # type: ignore[call-arg]


@pytest.mark.slow
def test_von_mises_fisher_goes_to_onnx() -> None:
    check(encoder_of(vae(families.VonMisesFisher, prior=UniformSphere), batch()), export_onnx)


def test_it_is_said_that_von_mises_fisher_takes_long() -> None:
    (note,) = encoder_of(vae(families.VonMisesFisher, prior=UniformSphere), batch()).notes
    assert "the export takes about two minutes" in note


def test_a_mean_near_a_half_keeps_its_digits() -> None:
    """ONNX has no expm1, so a continuous Bernoulli's mean was off by 5e-4 before it was computed by a series."""
    model = vae(likelihood=ContinuousBernoulli)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(1e-2)
    part = decoder_of(model, batch())
    assert worst_difference(part, run_onnx(export_onnx(part))) < 1e-6


# -- what cannot be exported ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: encoder_of(vae(families.RelaxedCategorical, prior=_relaxed()), batch()), "vae-lightning embed"),
        (lambda: encoder_of(CVAE(SHAPE, 0, decoder=TINY), batch()), "CVAE has no latent"),
        (lambda: encoder_of(AIR((1, 24, 24)), {"x": torch.rand(2, 1, 24, 24)}), "there is no encoder"),
        (
            lambda: encoder_of(HVAE(SHAPE, (3, 2), partial(BottomUp, posterior=IAF), decoder=TINY), batch()),
            "q of z1, IAF, has no mean in closed form",
        ),
        (lambda: export_pt2(encoder_of(vae(encoder=Counting), batch())), "encoder: torch cannot export it: "),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def _relaxed() -> Callable[[Shape], FamilyPrior]:
    return partial(FamilyPrior, family=families.RelaxedCategorical)


class Counting(MLP):
    """A network that looks at the values of its input, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x) if bool((x > 0.5).any()) else x)


# -- parts that differ from the trace ---------------------------------------------------------------------------------


class Flipped(VAE):
    """A model whose q sees -x; its `infer` is that of VAE."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        return super().trace({**batch, "x": -batch["x"]}, num_samples, step)


class FlippedInfer(Flipped):
    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        return LatentVariableModel.infer(self, batch)


class Doubled(VAE):
    """A model whose p(x|z) is that of 2 z; its `decode` is that of VAE."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        return replace(trace, p_x=self.likelihood(self.decoder(2 * trace.latents["z"].z)))


class WithW(VAE):
    """A model with a second latent, which `infer` and `decode` do not know."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x, q_z = batch["x"], self.q_z(batch["x"])
        z, w = draw(q_z, num_samples), draw(q_z, num_samples)
        latents = {"z": Latent(z, q_z, self.prior()), "w": Latent(w, q_z, self.prior())}
        return Trace(x, self.likelihood(self.decoder(z + w)), latents)


class FlippedHVAE(HVAE):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        return super().trace({**batch, "x": -batch["x"]}, num_samples, step)


class FlippedCVAE(CVAE):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        return super().trace({**batch, "label": 9 - batch["label"]}, num_samples, step)


OWN = partial(Flipped, SHAPE, 4, **NETS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "encoder_says", "decoder_says"),
    [
        (OWN, r"Flipped: infer differs from its trace in z_mean, z_scale: override infer\(batch\) too, and ", None),
        (partial(Doubled, *OWN.args, **NETS), None, "Doubled: decode differs from its trace in the mean of p"),
        (partial(WithW, *OWN.args, **NETS), "WithW: infer lacks w, unlike its trace.*q_z, .*q_w}", "WithW: decode"),
        (partial(FlippedHVAE, SHAPE, (3, 2), transition=TINY, decoder=TINY), "infer differs .* in z1_mean", None),
        (partial(FlippedCVAE, SHAPE, 3, embedding=TINY, **NETS), "infer differs from .* in z_mean", "FlippedCVAE: dec"),
    ],
)
def test_a_part_that_differs_from_the_trace_is_refused_in_one_line(
    model: Callable[[], LatentVariableModel], encoder_says: str | None, decoder_says: str | None
) -> None:
    """The trace is what was trained; a file of a function that training does not use would be wrong."""
    made = model().eval()
    for part_of, says in ((encoder_of, encoder_says), (decoder_of, decoder_says)):
        if says is None:
            part_of(made, batch())
            continue
        with pytest.raises(UserError, match=says) as error:
            part_of(made, batch())
        assert "\n" not in str(error.value)


def test_an_infer_that_takes_the_traces_q_is_exported() -> None:
    model, x = FlippedInfer(*OWN.args, **NETS).eval(), torch.rand(5, *SHAPE)  # type: ignore[arg-type]
    mean, scale = run_pt2(check(encoder_of(model, batch())))(x)
    q = model.q_z(-x)
    torch.testing.assert_close(mean, q.mean)
    torch.testing.assert_close(scale, q.stddev)


def test_encode_gives_q_of_the_trace() -> None:
    model, x = OWN().eval(), torch.rand(5, *SHAPE)
    torch.testing.assert_close(model.encode(x).mean, model.q_z(-x).mean)
    torch.testing.assert_close(model.codes_of(x)["z"], model.q_z(-x).mean)
    assert list(WithW(*OWN.args, **NETS).encode(x)) == ["z", "w"]  # type: ignore[arg-type,call-overload]


class Asking(VAE):
    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        self.encode(batch["x"])
        return super().trace(batch, num_samples, step)


def test_a_trace_that_asks_encode_is_told_what_to_call() -> None:
    model = Asking(*OWN.args, **NETS)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(UserError, match=r"^Asking: its trace calls encode, .*; call self\.q_z\(x\) there"):
            model.trace(batch())


def test_a_wrong_file_has_a_large_difference() -> None:
    part = encoder_of(vae(), batch())
    right = run_pt2(export_pt2(part))
    wrong: list[Callable[..., list[Tensor]]] = [
        lambda x: [right(x)[0] + 1e-3, right(x)[1]],
        lambda x: [right(x)[0] * torch.nan, right(x)[1]],
        lambda x: [right(x)[0][:, :3], right(x)[1]],
    ]
    assert [worst_difference(part, one) > TOLERANCE for one in wrong] == [True] * 3
    assert worst_difference(part, right) < 1e-6
