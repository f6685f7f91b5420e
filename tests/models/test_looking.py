"""Codes, reconstructions and ways through the latents, in Python: laws of every model, tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from vae_lightning.distributions import (
    IAF,
    Bernoulli,
    Categorical,
    Dirichlet,
    FamilyPrior,
    RelaxedCategorical,
    UniformSphere,
    VonMisesFisher,
)
from vae_lightning.models import AIR, CVAE, DLGM, HVAE, VAE, BottomUp, ClassLabel, ImageColumns, LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.pictures import interpolation, manifold, traversals
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, UserError
from vae_lightning.verbs.sample import check_samples

SHAPE = (1, 6, 6)
TINY = partial(MLP, hidden_sizes=[8])
VAE_ = partial(VAE, SHAPE, latent_size=4, encoder=TINY, decoder=TINY)
STRAIGHT = partial(Categorical, straight_through=True)
CLASSES = partial(ClassLabel, num_classes=3)
MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "VAE": VAE_,
    "maps": partial(VAE, SHAPE, latent_size=[2, 3, 3], encoder=TINY, decoder=TINY),
    "IAF": partial(VAE_, posterior=IAF),
    "sphere": partial(VAE_, posterior=VonMisesFisher, prior=UniformSphere),
    "one-hot": partial(VAE_, posterior=STRAIGHT, prior=partial(FamilyPrior, family=Categorical)),
    "simplex": partial(VAE_, posterior=Dirichlet, prior=partial(FamilyPrior, family=Dirichlet)),
    "relaxed": partial(VAE_, posterior=RelaxedCategorical, prior=partial(FamilyPrior, family=RelaxedCategorical)),
    "CVAE": partial(CVAE, SHAPE, latent_size=3, condition=CLASSES, encoder=TINY, decoder=TINY),
    "columns": partial(CVAE, SHAPE, latent_size=3, condition=partial(ImageColumns, columns=[2]), decoder=TINY),
    "DLGM": partial(DLGM, SHAPE, latent_sizes=[3, 2], encoder=TINY, decoder=TINY),
    "ladder": partial(HVAE, SHAPE, latent_sizes=[3, 2], decoder=TINY),
    "bottom-up": partial(HVAE, SHAPE, latent_sizes=[3, 2], inference=BottomUp, decoder=TINY),
    "AIR": partial(AIR, SHAPE, num_steps=2, window=3, what_size=2, hidden_size=8),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", MODELS)
NO_MEAN = {"IAF", "relaxed"}


def made(name: str) -> tuple[LatentVariableModel, Batch]:
    """A model whose posterior and decoder are far from constant, and a batch."""
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        if isinstance(model, AIR):  # which would find no object
            model.predict[-1].weight.normal_()  # type: ignore[operator, union-attr]
            model.predict[-1].bias[0] = 9  # type: ignore[index]
    return model, {"x": torch.rand(3, *SHAPE), "label": torch.tensor([0, 2, 1])}


@EVERY
def test_forward_is_deterministic_and_differentiable(name: str) -> None:
    model, batch = made(name)
    if name in NO_MEAN:
        with pytest.raises(UserError, match=r"has no closed-form mean; reconstruct\(x\)"):
            model(batch)
        return
    x = batch["x"].requires_grad_()
    first = model(batch)
    torch.manual_seed(5)
    assert torch.equal(first, model(batch))
    assert first.shape == x.shape
    if name != "one-hot":  # the likeliest class has no slope
        first.square().sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


def test_forward_decodes_the_posteriors_mean() -> None:
    model, batch = made("VAE")
    q = model.encode(batch["x"])
    assert torch.equal(model(batch["x"]), model.decode({"z": q.mean}).mean)  # type: ignore[union-attr]
    assert torch.equal(model.codes_of(batch)["z"], q.mean)  # type: ignore[union-attr]


@EVERY
def test_codes_lie_in_the_space_of_the_prior(name: str) -> None:
    model, batch = made(name)
    trace = model.checked_trace(batch)
    codes = model.codes_of(batch)
    assert codes.keys() == trace.latents.keys()
    for latent, code in codes.items():
        assert code.shape == trace.latents[latent].z.shape[1:]
        assert trace.latents[latent].p.support.check(code).all()  # type: ignore[union-attr]


@EVERY
def test_a_way_leads_from_one_reconstruction_to_the_other(name: str) -> None:
    model, batch = made(name)
    a = {field: values[:2] for field, values in batch.items()}
    b = {field: values[1:] for field, values in batch.items()}
    torch.manual_seed(0)
    way = model.interpolate(a, b, 5)
    assert way.shape == (2, 5, *SHAPE)
    if name not in NO_MEAN:
        assert torch.allclose(way[:, 0], model(a), atol=1e-5)
        assert torch.allclose(way[:, -1], model(b), atol=1e-5)
    assert not torch.allclose(way[:, 0], way[:, -1])


def test_on_a_sphere_the_way_is_an_arc_of_equal_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = made("sphere")
    seen: list[Tensor] = []
    monkeypatch.setattr(model, "decode", lambda latents: seen.append(latents["z"]) or VAE.decode(model, latents))  # type: ignore[arg-type, func-returns-value]
    model.interpolate(batch["x"][:1], batch["x"][1:2], 7)
    z = seen[0]
    assert torch.allclose(z.norm(dim=-1), torch.ones(7), atol=1e-5)
    cosines = (z[1:] * z[:-1]).sum(-1)
    assert torch.allclose(cosines, cosines[:1].expand(6), atol=1e-5)
    assert cosines[0] < 1 - 1e-4


@EVERY
@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_a_traverse_through_the_code_passes_the_reconstruction(name: str, start: Any) -> None:
    model, batch = made(name)
    codes = model.codes_of(batch)
    latent = {"AIR": "z_what", "DLGM": "z2", "ladder": "z1", "bottom-up": "z1"}.get(name, "z")
    value = codes[latent][0].flatten()[1]
    values = torch.stack([value, value * 0.5 + 0.2])
    moved = model.traverse(batch, latent, 1, values, start)
    assert moved.shape == (3, 2, *SHAPE)
    if start == "posterior" and name not in NO_MEAN:
        assert torch.allclose(moved[0, 0], model(batch)[0], atol=1e-4)
    if name != "AIR":
        assert not torch.allclose(moved[0, 0], moved[0, 1], atol=1e-6)


def test_the_first_object_of_a_scene_moves() -> None:
    model, batch = made("AIR")
    moved = model.traverse(batch, "z_where", 1, torch.tensor([-1.0, 0.0, 1.0]), "prior")
    columns = moved[0, :, 0].sum(-2).argmax(-1)
    rows = moved[0, :, 0].sum(-1).argmax(-1)
    assert len({*columns.tolist()}) + len({*rows.tolist()}) > 2
    assert torch.allclose(moved[0], moved[1])  # the prior does not depend on x


def test_what_follows_from_a_moved_layer_moves_with_it() -> None:
    model, batch = made("ladder")
    assert isinstance(model, HVAE)
    top = model.traverse(batch, "z2", 0, torch.tensor([-2.0, 2.0]), "prior")
    z2 = torch.zeros(2, 2)
    z2[:, 0] = torch.tensor([-2.0, 2.0])
    assert torch.allclose(top[0], model.decode({"z1": model.p_z(0, z2).mean}).mean, atol=1e-6)
    assert torch.equal(model.decode({"z2": z2}).mean, model.decode({"z1": model.p_z(0, z2).mean}).mean)


def test_a_conditional_model_takes_the_batchs_label() -> None:
    model, batch = made("CVAE")
    other = {**batch, "label": torch.tensor([1, 1, 0])}
    assert not torch.allclose(model(batch), model(other))
    with pytest.raises(UserError, match="ClassLabel: the data must have one label"):
        model(batch["x"])
    way = model.interpolate(batch, other, 4)
    assert torch.allclose(way[:, -1], model(other), atol=1e-6)
    assert model.num_labels == 3
    torch.manual_seed(0)
    c = torch.eye(3)[[2, 2]]
    expected = model.sample(2, c)  # type: ignore[call-arg]
    torch.manual_seed(0)
    assert torch.equal(model.sample_given(torch.tensor([2, 2])), expected)


class Plain(LatentVariableModel):
    """A model that samples without `draw`, and has no `decode`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(36, 4)

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        loc, raw = self.layer(batch["x"].flatten(1)).chunk(2, -1)
        q = Independent(Normal(loc, raw.exp()), 1)
        z = q.rsample((num_samples,))
        p = Independent(Normal(torch.zeros(2), 1.0), 1)
        x = z.sum(-1)[..., None, None, None].expand(*z.shape[:2], *SHAPE)
        return Trace(batch["x"], Bernoulli(SHAPE)(x), {"z": Latent(z, q, p)})

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, *SHAPE)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model, x: model(x), r"samples without vae_lightning\.trace\.draw"),
        (lambda model, x: model.interpolate(x, x), r"Plain has no decode\(latents\)"),
        (lambda model, x: model.interpolate(x, x[:1]), "3 examples and 1"),
        (lambda model, x: model.interpolate(x, x, 1), "steps is 1"),
        (lambda model, x: model.traverse(x, "y", 0, torch.zeros(1)), "Plain has no latent y to move; it has z"),
        (lambda model, x: model.traverse(x, "z", 2, torch.zeros(1)), r"z has no dimension 2; they are 0 \.\. 1"),
        (lambda model, _: model.sample_given(torch.zeros(1)), "Plain is not conditioned on a label"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(call: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        call(Plain().eval(), torch.rand(3, *SHAPE))


class Brighter(VAE):
    """A subclass whose trace alone has another p(x|z)."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        return replace(trace, p_x=self.likelihood(self.decoder(trace.latents["z"].z) + 1))


class Agreeing(Brighter):
    def decode(self, latents: Any) -> Any:
        return self.likelihood(self.decoder(latents["z"]) + 1)


@EVERY
def test_decode_agrees_with_the_trace(name: str) -> None:
    model, batch = made(name)
    model.check_decode(batch)


def test_a_trace_that_alone_has_another_likelihood_is_refused_before_it_is_drawn() -> None:
    batch, one = ({"x": torch.rand(n, *SHAPE)} for n in (4, 1))
    wrong, right = (kind(SHAPE, latent_size=4, encoder=TINY, decoder=TINY).eval() for kind in (Brighter, Agreeing))
    says = r"decode differs from its trace in the mean of p\(x\|z\): override decode\(latents\) too"
    for draw_it in (
        lambda model: traversals(model, None, batch, 0, "t", numbers=[0]),
        lambda model: interpolation(model, None, one, one, 0, "t"),
        lambda model: manifold(model, None, batch, 0, "t", side=2),
        lambda model: check_samples(model, None),
    ):
        with pytest.raises(UserError, match=says):
            draw_it(wrong)
        draw_it(right)


def test_samples_follow_a_decode_of_ones_own() -> None:
    torch.manual_seed(0)
    ours = VAE_().eval()
    theirs = Agreeing(SHAPE, latent_size=4, encoder=TINY, decoder=TINY).eval()
    theirs.load_state_dict(ours.state_dict())
    draws = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        draws.append(model.sample(3).logit())
    torch.testing.assert_close(draws[1], draws[0] + 1)


def test_every_model_reconstructs() -> None:
    assert Plain().reconstruct(torch.rand(3, *SHAPE)).shape == (3, *SHAPE)
