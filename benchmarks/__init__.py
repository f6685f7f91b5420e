"""Speed beside the peers: `python -m benchmarks`. Not imported by vae_lightning, and in no wheel."""
