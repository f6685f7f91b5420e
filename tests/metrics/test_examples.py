"""The values of each test example: their order over ranks, and the fingerprints by which examples are paired."""

from __future__ import annotations

import pytest
import torch

from vae_lightning.metrics.examples import ExampleValues, fingerprint


def test_the_batches_of_several_ranks_are_put_in_the_order_of_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [ExampleValues(), ExampleValues()]
    x = torch.arange(10.0)[:, None]
    for i, batch in enumerate(x.split(2)):  # five batches, so that the second rank has one less
        ranks[i % 2].add(batch, {"elbo": batch[:, 0], "loss": batch[:, 0], "scalar": torch.tensor(1.0)})
    gathered = [[dict(batch) for batch in rank._batches] for rank in ranks]
    monkeypatch.setattr("vae_lightning.metrics.examples.objects_from_all_ranks", lambda _: gathered)
    found = ranks[0].from_all_ranks({})
    assert found["elbo"].tolist() == list(range(10))
    assert set(found) == {"elbo", "fingerprint"}
    assert torch.equal(found["fingerprint"], fingerprint(x))


def test_a_fingerprint_tells_examples_apart() -> None:
    x = torch.rand(100, 1, 8, 8)
    assert fingerprint(x).unique().numel() == 100
    assert torch.allclose(fingerprint(x * (1 + 1e-7)), fingerprint(x), atol=1e-4)
    assert fingerprint(x.roll(1, -1)).ne(fingerprint(x)).all()
    assert fingerprint(torch.zeros(3, 4, dtype=torch.bool)).tolist() == [0, 0, 0]
