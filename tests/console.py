"""The console script `vae-lightning`, as pip writes it."""

from vae_lightning.__main__ import console

console()
