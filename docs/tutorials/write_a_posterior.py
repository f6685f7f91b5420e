"""Write a posterior as one class, check its laws, and train with it. A quarter of a minute on a CPU, no download.

    python docs/tutorials/write_a_posterior.py

A posterior is a `Family`: features -> a torch distribution. It is never a new model, and every objective, metric and
picture takes it. Likelihoods are families, too, so this is also how to write one of those.
"""

# %% The class: how many numbers a dimension needs, and the distribution of one dimension.
from functools import partial

import lightning as L
import torch
from torch import Tensor
from torch.distributions import Gumbel as TorchGumbel
from torch.distributions import Normal, kl_divergence

from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, Family
from vae_lightning.distributions.families import positive
from vae_lightning.models import VAE
from vae_lightning.networks import MLP


class Gumbel(Family):
    """q(z) = e^(-u - e^-u) / s with u = (z - mu) / s in each dimension: leans to one side, which no Gaussian can."""

    num_params = 2  # mu, and a raw s, for each dimension of z

    def pointwise(self, mu: Tensor, raw_scale: Tensor) -> TorchGumbel:
        scale = positive(raw_scale, floor=1e-3)  # 1 at a feature of 0
        return TorchGumbel(mu, scale, validate_args=self.validate_args)


# %% Its laws, before anything is trained: the density integrates to 1; the closed-form KL is that of samples.
torch.manual_seed(0)
q = Gumbel((1,))(torch.zeros(2))  # event [1], mu 0, s 1
z = torch.linspace(-6, 30, 4001)[:, None]
total = float(torch.trapezoid(q.log_prob(z).exp(), z[:, 0]))
drawn = q.sample((200_000,))
sampled = float((q.log_prob(drawn) - Normal(0.0, 1.0).log_prob(drawn).sum(-1)).mean())
exact = float(kl_divergence(TorchGumbel(0.0, 1.0), Normal(0.0, 1.0)))
print(f"integral {total:.4f}; KL to N(0, 1) {exact:.3f} nats, from samples {sampled:.3f}")
assert abs(total - 1) < 1e-3
assert abs(sampled - exact) < 0.02

# %% Training: the class goes into the slot. The KL is in closed form, because torch knows one; else it is sampled.
L.seed_everything(0)
data = Digits(batch_size=64)
network = partial(MLP, hidden_sizes=(256, 256))
vae = VAE(
    data.image_shape,
    latent_size=8,
    encoder=network,
    posterior=Gumbel,
    decoder=network,
    likelihood=partial(Binomial, num_steps=16),
    optimizer=partial(torch.optim.Adam, lr=1e-3),
)
trainer = L.Trainer(
    max_epochs=20, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False
)
trainer.fit(vae, data)
print(f"val/elbo {float(trainer.callback_metrics['val/elbo']):.1f} nats an image")
assert float(trainer.callback_metrics["val/elbo"]) > -150

# %% From the command line: put the class into a file of your own, such as my_pkg.py, and name it.
print("vae-lightning train -c vae/digits --model.posterior=my_pkg.Gumbel --trust my_pkg")
