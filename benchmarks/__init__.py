"""Speed beside the peers: `python -m benchmarks`. The package does not import it, and it is in no wheel."""
