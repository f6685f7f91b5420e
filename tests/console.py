"""What pip makes of the console script `vae-lightning`."""

from vae_lightning.__main__ import console

console()
