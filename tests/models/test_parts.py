"""Encoders and decoders alone: q(z|x) without noise, p(x|z) with its conditions, and Lightning's own exports."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.models import AIR, CVAE, DLGM, HVAE, VAE, BottomUp, ImageColumns, LatentVariableModel
from vae_lightning.models.parts import centre_or_sample
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw, drawing
from vae_lightning.types import Batch, UserError

TINY = partial(MLP, hidden_sizes=(8,))
SHAPE = (1, 4, 4)


def batch(n: int = 3) -> Batch:
    return {"x": torch.rand(n, *SHAPE).round(), "label": torch.arange(n) % 10}


def models() -> dict[str, LatentVariableModel]:
    nets = {"encoder": TINY, "decoder": TINY}
    return {
        "VAE": VAE(SHAPE, 3, **nets),  # type: ignore[arg-type]
        "DLGM": DLGM(SHAPE, (3, 2), transition=TINY, **nets),  # type: ignore[arg-type]
        "Ladder": HVAE(SHAPE, (3, 2), transition=TINY, decoder=TINY),
        "BottomUp": HVAE(SHAPE, (3, 2), inference=BottomUp, transition=TINY, decoder=TINY),
        "CVAE": CVAE(SHAPE, 3, embedding=TINY, **nets),  # type: ignore[arg-type]
        "columns": CVAE(SHAPE, 3, condition=partial(ImageColumns, columns=(1,)), embedding=TINY, **nets),  # type: ignore[arg-type]
        "regression": CVAE(SHAPE, 0, decoder=TINY),
    }


@pytest.mark.parametrize("name", models())
def test_infer_and_decode_give_the_distributions_of_a_trace_at_the_means(name: str) -> None:
    model, x = models()[name].eval(), batch()
    with drawing(centre_or_sample):
        trace = model.trace(x)
    found = model.infer(x)
    assert list(found) == list(trace.latents)
    for latent, q in found.items():
        torch.testing.assert_close(q.mean, trace.latents[latent].q.mean)
        torch.testing.assert_close(q.stddev, trace.latents[latent].q.stddev)
    z = {name: latent.z for name, latent in trace.latents.items()}
    p_x = model.decode_given(z, x)
    torch.testing.assert_close(p_x.mean.expand_as(trace.p_x.mean), trace.p_x.mean)


class Own(VAE):
    """A model that defines `trace` alone, with a second latent."""

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        return LatentVariableModel.infer(self, batch)

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        trace = super().trace(batch, num_samples, step)
        q = self.posterior(torch.cat([trace.latents["z"].z] * 2, -1))
        return Trace(trace.x, trace.p_x, {**trace.latents, "above": Latent(draw(q), q, self.prior())})


def test_a_model_that_defines_trace_alone_has_its_encoder_too() -> None:
    model = Own(SHAPE, 3, encoder=TINY, decoder=TINY).eval()
    found = model.infer(batch())
    assert found["z"].batch_shape == (3,)
    assert found["above"].batch_shape == (1, 3)
    torch.testing.assert_close(found["above"].mean[0], found["z"].mean)  # at the mean of the latent below


def test_a_model_whose_objects_come_and_go_has_no_encoder() -> None:
    with pytest.raises(UserError, match="AIR: some examples have no n, z_where, z_what, or the values are enumerated"):
        AIR((1, 24, 24), num_steps=2).infer({"x": torch.rand(2, 1, 24, 24)})


@pytest.mark.parametrize(("method", "form"), [("to_onnx", "onnx"), ("to_torchscript", "pt2")])
def test_lightnings_exports_name_the_command(method: str, form: str, tmp_path: object) -> None:
    export = getattr(models()["VAE"], method)
    with pytest.raises(UserError, match=f"^{method}: .*vae-lightning export RUN --format {form}") as error:
        export(f"{tmp_path}/model", torch.zeros(1, *SHAPE))
    assert "\n" not in str(error.value)


def test_the_decoder_of_a_cvae_depends_on_the_label() -> None:
    z, model = torch.zeros(10, 3), models()["CVAE"]
    means: Tensor = model.decode_given({"z": z}, {"label": torch.arange(10)}).mean
    assert len(means.flatten(1).unique(dim=0)) == 10
