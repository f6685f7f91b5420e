"""A data set of signals, and a model of signals, for vae_lightning."""
