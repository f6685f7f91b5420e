"""A data set and a model of your own for vae_lightning."""
