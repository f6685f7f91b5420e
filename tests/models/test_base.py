"""The base class of all models: what it logs, its noise, its optimizer, its checkpoints."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.data import Digits, ImageDataModule
from vae_lightning.distributions import Binomial, ContinuousBernoulli, DiagonalNormal, Family
from vae_lightning.models import CVAE, DLGM, HVAE, VAE, LatentVariableModel
from vae_lightning.models.loading import differences, load_model
from vae_lightning.models.multi_step import MultiStepTraining
from vae_lightning.models.restoring import check_fits
from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder
from vae_lightning.objectives import ELBO, IWAE, LinearWarmup
from vae_lightning.recipes import arguments
from vae_lightning.runs.differences import config_changes
from vae_lightning.runs.machine import find_compiler
from vae_lightning.runs.trust import read_checkpoint
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

TINY = partial(MLP, hidden_sizes=(16,), activation=nn.Tanh)


def vae(**slots: Any) -> VAE:
    defaults: dict[str, Any] = {"encoder": TINY, "decoder": TINY, "likelihood": partial(Binomial, num_steps=16)}
    return VAE((1, 8, 8), 4, **{**defaults, **slots})


def trainer(tmp_path: Path, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "default_root_dir": tmp_path,
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            **settings,
        }
    )


def test_logs_nats_per_example_for_train_and_val(tmp_path: Path) -> None:
    model, loop = vae(objective=partial(ELBO, beta=LinearWarmup(40))), trainer(tmp_path)
    loop.fit(model, datamodule=Digits(batch_size=64))
    found = {name: value.item() for name, value in loop.callback_metrics.items()}
    for stage in ("train", "val"):
        assert {f"{stage}/{name}" for name in ("loss", "elbo", "kl", "kl/z", "log_likelihood")} <= found.keys()
        assert found[f"{stage}/elbo"] == pytest.approx(
            found[f"{stage}/log_likelihood"] - found[f"{stage}/kl"], abs=1e-3
        )
        assert found[f"{stage}/kl"] >= 0
    assert found["train/beta"] == pytest.approx(19 / 40)  # the last step of 20
    assert found["train/images_per_second"] > 0
    assert "train/sigma" not in found


def test_logs_the_sigma_of_a_gaussian_likelihood(tmp_path: Path) -> None:
    loop = trainer(tmp_path)
    loop.fit(vae(likelihood=partial(DiagonalNormal, sigma=0.25)), datamodule=Digits())
    assert loop.callback_metrics["train/sigma"].item() == pytest.approx(0.25, rel=1e-4)
    assert loop.callback_metrics["val/sigma"].item() == pytest.approx(0.25, rel=1e-4)


def test_validation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    """The closed-form KL has no noise, so its mean over 176 images is equal for batches of 175, 64 or 3."""
    model = vae()
    found = []
    for size in (500, 64, 3):
        loop = trainer(tmp_path)
        loop.validate(model, datamodule=Digits(eval_batch_size=size), verbose=False)
        found.append(loop.callback_metrics["val/kl"].item())
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_noise_is_a_function_of_the_step_and_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal when repeated; different for another batch, epoch, rank or seed."""
    model = vae()
    draws: dict[tuple[int, ...], Tensor] = {}
    for seed, rank, epoch, batch in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        for _ in range(2):
            model._reseed(rank, 0, epoch, batch)
            noise = torch.randn(4)
            assert torch.equal(draws.setdefault((seed, rank, epoch, batch), noise), noise)
    assert len({tuple(noise.tolist()) for noise in draws.values()}) == 5


class SeedSpy(VAE):
    """Stores the generator's seed at the beginning of each trace, by the Trainer's stage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seeds: dict[str, list[int]] = {}

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        self.seeds.setdefault(str(self.trainer.state.stage), []).append(torch.initial_seed())
        return super().trace(batch, num_samples)


@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_evaluation_never_have_the_same_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Every batch of a fit, of its validations and of a test starts at its own seed."""
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    model = SeedSpy((1, 8, 8), 4, encoder=TINY, decoder=TINY, likelihood=partial(Binomial, num_steps=16))
    loop, data = trainer(tmp_path, num_sanity_val_steps=0), Digits()
    loop.fit(model, datamodule=data)
    loop.test(model, datamodule=data, verbose=False)
    assert model.seeds.keys() == {"RunningStage.TRAINING", "RunningStage.VALIDATING", "RunningStage.TESTING"}
    drawn = [one for seeds in model.seeds.values() for one in seeds]
    assert len(set(drawn)) == len(drawn) > 20


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_each_rank_trains_on_noise_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_per_call: int
) -> None:
    """With the same weights and images, the latents of a step differ between ranks and repeat on each rank."""
    drawn: list[Tensor] = []
    x = torch.rand(6, 1, 8, 8)

    class Spy(VAE):
        def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
            trace = super().trace(batch, num_samples)
            drawn.append(trace.latents["z"].z.detach())
            return trace

    def first_step(rank: int) -> Tensor:
        drawn.clear()
        torch.manual_seed(0)
        model = Spy((1, 8, 8), 4, encoder=TINY, decoder=TINY, likelihood=DiagonalNormal)
        monkeypatch.setattr(pl.LightningModule, "global_rank", property(lambda _: rank))
        loop = trainer(tmp_path, max_steps=1, log_every_n_steps=0)
        call: Any = [{"x": x}] if steps_per_call == 1 else [[{"x": x}]]
        if steps_per_call > 1:
            model.automatic_optimization, model.multi_step = False, MultiStepTraining(model, loop, steps_per_call)
        loop.fit(model, torch.utils.data.DataLoader(call, batch_size=None))
        return drawn[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(many workers|no `val_dataloader`).*")
        ranks = [first_step(rank) for rank in (0, 1, 2, 1)]
    assert torch.equal(ranks[3], ranks[1])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(ranks[:3], 2))


class WithAProduct(ELBO):
    """The ELBO with one more term: the mean of each example's row of x x^T, which is [B, B]."""

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        rows = trace.x.flatten(1) @ trace.x.flatten(1).T
        return {**super().forward(trace, step), "product": rows.mean(1)}


def test_an_objective_is_float32_where_the_networks_are_bfloat16(tmp_path: Path) -> None:
    """Autocast does not round a product of matrices in the objective, in training and in validation."""
    model = vae(objective=WithAProduct)
    loop = trainer(tmp_path, precision="bf16-mixed", num_sanity_val_steps=0)
    x = torch.full((4, 1, 8, 8), 1 / 16)
    x[:, 0, 0, 0] = 257 / 4096  # sum x^2 is not representable in bfloat16
    batches = torch.utils.data.DataLoader([{"x": x}], batch_size=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        model.likelihood = DiagonalNormal((1, 8, 8), sigma=0.1)
        loop.fit(model, batches, batches)
    expected = x[0].square().sum().item()
    for stage in ("train", "val"):
        assert loop.callback_metrics[f"{stage}/product"].item() == pytest.approx(expected, rel=1e-6)


def test_optimizer_and_scheduler_are_the_ones_given(tmp_path: Path) -> None:
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=5, gamma=0.5)
    model = vae(optimizer=partial(torch.optim.SGD, lr=1e-3), scheduler=step, scheduler_interval="step")
    loop = trainer(tmp_path)
    loop.fit(model, datamodule=Digits())
    assert isinstance(loop.optimizers[0], torch.optim.SGD)
    assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)  # 10 steps of batch 128


def test_a_setting_that_torch_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Invalid learning rate"):
        trainer(tmp_path).fit(vae(optimizer=partial(torch.optim.Adam, lr=-1)), datamodule=Digits())


class LostAtZero(ELBO):
    """The ELBO's loss minus log sum x: infinite for a black image, but with the ELBO's finite gradient."""

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = super().forward(trace, step)
        return {**terms, "loss": terms["loss"] - trace.x.flatten(1).sum(1).log()}


@pytest.mark.slow  # the compiler takes a quarter of a minute
@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
@pytest.mark.skipif(find_compiler() is None, reason="torch.compile wants a C++ compiler, and there is none")
def test_a_loss_that_is_not_finite_has_such_a_gradient_when_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that replaced `0 * loss` by 0 would leave the finite gradient of this objective."""
    monkeypatch.setattr(Family, "validate_args", False)  # the default outside of tests
    monkeypatch.setattr(Distribution, "_validate_args", False)
    model = VAE((1, 2, 2), 2, encoder=TINY, decoder=TINY, objective=LostAtZero)
    monkeypatch.setattr(model, "_check_once", id)  # the check asks a Trainer for the stage
    torch._dynamo.reset()
    compiled = torch.compile(model.loss_and_terms, options={"fallback_random": True})
    for function in (model.loss_and_terms, compiled):
        for value, is_finite in ((1.0, True), (0.0, False)):
            loss = function({"x": torch.full((3, 1, 2, 2), value)}, 0)[0]
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            assert loss.isfinite() == is_finite
            assert all(slope.isfinite().all() if is_finite else slope.isnan().all() for slope in slopes)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_grey_pixel_is_impossible_under_a_bernoulli(stage: str, tmp_path: Path) -> None:
    """The first batch of every stage gives an error with a remedy; the same model runs on binarised data."""
    model = VAE((1, 8, 8), 4, encoder=TINY, decoder=TINY)
    with pytest.raises(UserError, match=r"binarisation=dynamic.*ContinuousBernoulli"):
        getattr(trainer(tmp_path), stage)(model, datamodule=Digits())
    getattr(trainer(tmp_path), stage)(VAE((1, 8, 8), 4), datamodule=Digits(binarisation="threshold"))


class PassesOn(VAE):
    """A user's model that adds one argument, and whose objective is the VAE's."""

    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width


@pytest.mark.parametrize("cls", [VAE, CVAE, DLGM, HVAE, PassesOn])
def test_hyper_parameters_hold_every_argument_with_its_default(cls: type[LatentVariableModel]) -> None:
    """A checkpoint must depend neither on later defaults nor on what a constructor passes to its base class."""
    kept = cls(image_shape=(1, 8, 8), scheduler_interval="step").hparams  # type: ignore[call-arg]
    assert kept.keys() == {*arguments(cls), "_class_path", "_instantiator"}
    assert {"image_shape", "decoder", "objective", "optimizer", "scheduler", "scheduler_interval"} < kept.keys()
    assert kept["objective"]["class_path"] == "vae_lightning.objectives.elbo.ELBO"
    assert kept["objective"]["init_args"] == {
        **{"num_samples": 1, "beta": 1.0, "betas": None, "observed": None, "costs": None}
    }
    assert kept["optimizer"]["class_path"] == "torch.optim.adam.Adam"
    assert (kept["scheduler"], kept["scheduler_interval"]) == (None, "step")


def test_python_checkpoint_is_plain_data_and_rebuilds_everything(tmp_path: Path) -> None:
    model = VAE(
        (1, 8, 8),
        latent_size=3,
        encoder=partial(ConvEncoder, channels=(4, 8), hidden_size=16, activation=nn.Tanh),
        decoder=partial(ConvDecoder, channels=(4, 8), hidden_size=16),
        likelihood=partial(DiagonalNormal, sigma=0.2, learn_sigma=True),
        objective=partial(IWAE, num_samples=3),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=5),
    )
    loop = trainer(tmp_path)
    loop.fit(model, datamodule=Digits())
    path = tmp_path / "model.ckpt"
    loop.save_checkpoint(path)
    assert read_checkpoint(path)["hyper_parameters"]["objective"]["init_args"] == {"num_samples": 3, "costs": None}
    for loaded in (VAE.load_from_checkpoint(path), load_model(path)):
        assert isinstance(loaded, VAE)
        assert str(loaded) == str(model)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        x = torch.rand(2, 1, 8, 8)
        found, expected = (one.trace({"x": x}).latents["z"].q.mean for one in (loaded, model))
        torch.testing.assert_close(found, expected)
        assert "Tanh" in json.dumps(dict(loaded.hparams))  # plain again, so that another save and load work


def test_what_a_checkpoint_cannot_rebuild_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="Class, name=value"):
        vae(encoder=lambda in_shape, out_shape: MLP(in_shape, out_shape))


def test_a_checkpoint_that_does_not_fit_is_named_by_its_first_tensor(tmp_path: Path) -> None:
    loop = trainer(tmp_path)
    loop.fit(vae(), datamodule=Digits())
    loop.save_checkpoint(tmp_path / "a.ckpt")
    check_fits("a.ckpt", read_checkpoint(tmp_path / "a.ckpt"), vae())
    with pytest.raises(UserError, match=r"encoder.layers.1.bias is \[16\] there, \[17\] here"):
        check_fits("a.ckpt", read_checkpoint(tmp_path / "a.ckpt"), vae(encoder=partial(MLP, hidden_sizes=(17,))))


def test_a_checkpoint_that_names_a_foreign_class_is_not_loaded(tmp_path: Path) -> None:
    loop = trainer(tmp_path)
    loop.fit(vae(), datamodule=Digits())
    loop.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["encoder"]["class_path"] = "antigravity.Network"
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"antigravity.Network.*not loaded"):
        load_model(tmp_path / "b.ckpt")


@pytest.mark.parametrize("value", ["antigravity.anything", {"class_path": "antigravity.Network"}, ["antigravity.x"]])
def test_no_string_of_a_checkpoint_can_name_a_foreign_module(value: Any, tmp_path: Path) -> None:
    loop = trainer(tmp_path)
    loop.fit(vae(), datamodule=Digits())
    loop.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["encoder"]["init_args"]["activation"] = value
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="not loaded"):
        load_model(tmp_path / "b.ckpt")
    assert "antigravity" not in sys.modules


def test_what_differs_from_a_checkpoint_is_listed(tmp_path: Path) -> None:
    loop = trainer(tmp_path)
    loop.fit(vae(), datamodule=Digits())
    loop.save_checkpoint(tmp_path / "a.ckpt")
    assert differences(read_checkpoint(tmp_path / "a.ckpt"), vae()) == []
    assert differences(read_checkpoint(tmp_path / "a.ckpt"), load_model(tmp_path / "a.ckpt")) == []
    changed = differences(read_checkpoint(tmp_path / "a.ckpt"), vae(objective=partial(ELBO, beta=2.0)))
    assert changed == ["objective.beta: 1.0 -> 2.0"]


LOGGER = "lightning.pytorch.loggers."
WANDB = {"class_path": f"{LOGGER}WandbLogger", "init_args": {"project": "a", "name": None, "prefix": "", "id": None}}
CSV = {"class_path": f"{LOGGER}CSVLogger", "init_args": {"save_dir": "b", "version": None}}


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (False, WANDB, ["trainer.logger: False -> WandbLogger"]),
        (WANDB, False, ["trainer.logger: WandbLogger -> False"]),
        (WANDB, CSV, ["trainer.logger: WandbLogger -> CSVLogger"]),
        (WANDB, [WANDB, CSV], ["trainer.logger: WandbLogger -> [WandbLogger, CSVLogger]"]),
        ([CSV], [{**CSV, "init_args": {"save_dir": "c"}}], ["trainer.logger.0.save_dir: b -> c"]),
        ([WANDB, True], [WANDB, True], []),
        (None, [], ["trainer.logger: None -> []"]),
    ],
)
def test_a_class_that_is_replaced_is_one_change(there: Any, here: Any, said: list[str], tmp_path: Path) -> None:
    texts = [yaml.safe_dump({"trainer": {"logger": logger}}) for logger in (there, here)]
    (tmp_path / "config.yaml").write_text(texts[0])
    assert config_changes(tmp_path / "config.yaml", texts[1]) == said


def test_a_schedule_is_evaluated_where_its_checkpoint_stood(tmp_path: Path) -> None:
    """The test loss of a checkpoint is the same within the fit and in a command of its own."""
    model = vae(objective=partial(ELBO, beta=LinearWarmup(40)))
    loop = trainer(tmp_path)
    loop.fit(model, datamodule=Digits(batch_size=64))
    loop.save_checkpoint(tmp_path / "a.ckpt")
    alone = trainer(tmp_path)
    alone.test(vae(objective=partial(ELBO, beta=LinearWarmup(40))), Digits(), str(tmp_path / "a.ckpt"), verbose=False)
    found = {name: value.item() for name, value in alone.callback_metrics.items()}
    assert found["test/loss"] == pytest.approx(0.5 * found["test/kl"] - found["test/log_likelihood"], rel=1e-5)


def test_a_users_own_shuffling_loader_shuffles_anew_in_every_epoch(tmp_path: Path) -> None:
    """Validation restores torch's generator, which would otherwise stand where validation's fixed noise ends."""
    orders: list[list[int]] = []

    class Spy(VAE):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            orders.append([])

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            orders[-1] += batch["label"].tolist()
            return super().training_step(batch, batch_idx)

    rows = [{"x": torch.zeros(1, 8, 8), "label": i} for i in range(32)]
    train = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)  # type: ignore[arg-type]
    val = torch.utils.data.DataLoader(rows, batch_size=8)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer(tmp_path, max_epochs=5).fit(Spy((1, 8, 8), 2, encoder=TINY, decoder=TINY), train, val)
    assert [sorted(order) for order in orders] == [list(range(32))] * 5
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_with_a_fused_optimizer(precision: str, algorithm: str, tmp_path: Path) -> None:
    """With a bound near zero and plain SGD, the weights do not move."""
    model = vae(optimizer=partial(torch.optim.SGD, lr=1.0, fused=True))
    before = [p.detach().clone() for p in model.parameters()]
    loop = trainer(
        tmp_path, precision=precision, gradient_clip_val=1e-9, gradient_clip_algorithm=algorithm, log_every_n_steps=0
    )
    loop.fit(model, datamodule=Digits())
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (torch.optim.Adam, True),
        (torch.optim.AdamW, True),
        (partial(torch.optim.SGD, lr=1e-3), True),
        (partial(torch.optim.Adam, fused=False), False),
        (partial(torch.optim.Adam, foreach=True), None),
        (partial(torch.optim.Adam, differentiable=True), None),
        (torch.optim.RMSprop, None),
    ],
)
def test_an_optimizer_is_fused_unless_something_else_is_asked_for(optimizer: Any, expected: bool | None) -> None:
    found = vae(optimizer=optimizer).configure_optimizers()
    assert isinstance(found, torch.optim.Optimizer)
    assert [group.get("fused") for group in found.param_groups] == [expected]


def test_a_fused_step_is_the_step_of_the_optimizer() -> None:
    after = []
    for fused in (None, False):
        torch.manual_seed(0)
        model = vae(optimizer=partial(torch.optim.Adam, lr=0.1, fused=fused)).double()
        optimizer = model.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
            optimizer.step()
        after.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(after[0], after[1])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_under_a_loss_scale_a_fused_optimizer_clips_as_another(algorithm: str, tmp_path: Path) -> None:
    """With 16-mixed, as on a GPU, the clipped gradient is the loss's own, without the scale of 256."""
    after = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = vae(optimizer=partial(torch.optim.SGD, lr=0.1, fused=fused))
        before = [p.detach().clone() for p in model.parameters()]
        half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
        clip = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
        trainer(tmp_path, plugins=[half], max_steps=3, **clip).fit(model, datamodule=Digits())
        after.append([p.detach() for p in model.parameters()])
        moved = torch.cat([(new - old).flatten() for old, new in zip(before, after[-1], strict=True)])
        size = moved.norm() if algorithm == "norm" else moved.abs().max()
        assert 0 < size <= 3 * 0.1 * 0.01 * 1.001
    torch.testing.assert_close(after[1], after[0])


@pytest.mark.parametrize("contents", [b"", b"not a checkpoint", None])
def test_damaged_and_foreign_checkpoints_are_refused(contents: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if contents is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(contents)
    with pytest.raises(UserError, match=r"x.ckpt: not a"):
        read_checkpoint(path)


@pytest.mark.parametrize("likelihood", [ContinuousBernoulli, DiagonalNormal, partial(Binomial, num_steps=16)])
def test_bf16_networks_full_precision_densities(likelihood: Any, tmp_path: Path) -> None:
    """Under bf16-mixed the loss is float32. Its KL differs from that of float32 by the features' rounding only."""
    data: ImageDataModule = Digits()
    full, half = trainer(tmp_path), trainer(tmp_path, precision="bf16-mixed")
    model = vae(likelihood=likelihood)
    full.validate(model, datamodule=data, verbose=False)
    half.validate(model, datamodule=data, verbose=False)
    a, b = (loop.callback_metrics["val/elbo"] for loop in (full, half))
    assert b.dtype == torch.float32
    assert b.item() == pytest.approx(a.item(), rel=5e-3)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """Ten epochs on the digits take the validation ELBO from below -500 to above -200 nats."""
    torch.manual_seed(0)
    model = vae(encoder=partial(MLP, hidden_sizes=(128,)), decoder=partial(MLP, hidden_sizes=(128,)))
    before, after = trainer(tmp_path), trainer(tmp_path, max_epochs=10, log_every_n_steps=50)
    before.validate(model, datamodule=Digits(batch_size=32), verbose=False)
    after.fit(model, datamodule=Digits(batch_size=32))
    assert before.callback_metrics["val/elbo"].item() < -500
    assert after.callback_metrics["val/elbo"].item() > -200
