"""Train a VAE in Python, look at it, and use its codes. Half a minute on a CPU, without a download.

    python docs/tutorials/train_and_look.py

The parts between the lines `# %%` are cells in an editor that knows them (VS Code, PyCharm, Spyder, Jupytext).
"""

# %% The model: six slots, each a class or a partial of one. A slot that is not named keeps its default.
from functools import partial
from pathlib import Path

import lightning as L
import torch

from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.pictures import reconstructions, samples, save

L.seed_everything(0)
data = Digits(batch_size=64)  # scikit-learn's 8 x 8 digits: images [1, 8, 8] of 17 grey levels, with labels
network = partial(MLP, hidden_sizes=(256, 256))
vae = VAE(
    data.image_shape,
    latent_size=8,
    encoder=network,
    decoder=network,
    likelihood=partial(Binomial, num_steps=16),  # 17 levels: a probability for each, so the nats are comparable
    optimizer=partial(torch.optim.Adam, lr=1e-3),
)

# %% Training: Lightning's own trainer. `val/elbo` is in nats an image; higher is better.
trainer = L.Trainer(
    max_epochs=40, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False
)
trainer.fit(vae, data)
elbo = float(trainer.callback_metrics["val/elbo"])
print(f"val/elbo {elbo:.1f} nats an image")

# %% Looking: a trace is one run of the model. Everything is read off its distributions.
batches = list(data.val_dataloader())
batch = {name: torch.cat([one[name] for one in batches]) for name in ("x", "label")}  # 176 images
vae.eval()
with torch.no_grad():
    trace = vae.trace(batch, num_samples=50)
    kl = trace.kl()["z"]  # [B] or [50, B], in nats
    log_weight = trace.log_weight()  # log p(x, z_k) - log q(z_k|x): [50, B]
bound = torch.logsumexp(log_weight, 0) - torch.log(torch.tensor(50.0))  # of log p(x), tighter than the ELBO
print(f"KL {kl.mean():.1f} nats; ELBO {log_weight.mean():.1f}; with 50 importance samples {bound.mean():.1f}")
assert bound.mean() > log_weight.mean()

# %% Pictures: written as PNG, or shown by a notebook.
pictures = Path("pictures")
save(samples(vae, data, 50, seed=0, title="samples"), pictures / "samples.png")
save(reconstructions(vae, data, batch, seed=0, title="reconstructions"), pictures / "reconstructions.png")

# %% Codes: q(z|x) is a torch distribution, so its mean is the code and its stddev the doubt.
data.predicted_splits = ("train",)
(in_order,) = data.predict_dataloader()  # the training images as in evaluation
with torch.no_grad():
    codes = vae.encode(batch["x"]).mean  # [176, 8]
    parts = [(vae.encode(part["x"]).mean, part["label"]) for part in in_order]
known, labels = (torch.cat(column) for column in zip(*parts, strict=True))
nearest = torch.cdist(codes, known).argmin(1)
accuracy = float((labels[nearest] == batch["label"]).float().mean())
print(f"{100 * accuracy:.0f} % of {len(codes)} digits are of the class of the nearest of {len(known)} codes")

# %% The way back: p(x|z) at a point halfway between two codes.
with torch.no_grad():
    between = vae.decode({"z": (codes[0] + codes[1]) / 2}).mean  # [1, 8, 8]
print(f"between two digits: {list(between.shape)}")
