"""The digits of scikit-learn: counts, grey levels, and a split that no library version changes."""

from __future__ import annotations

import hashlib

import torch

from vae_lightning.data import Digits
from vae_lightning.data.base import Split
from vae_lightning.data.digits import _load_digits, _stratified_split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def test_counts_and_levels() -> None:
    data = Digits()
    images = [data.load(split) for split in SPLITS]
    assert [len(part.pixels) for part in images] == [1266, 176, 355]
    pixels = torch.cat([part.pixels for part in images])
    assert pixels.shape == (1797, 1, 8, 8)
    assert pixels.unique().tolist() == list(range(17))
    assert {part.max_value for part in images} == {16}


def test_the_split_is_disjoint_stratified_and_fixed() -> None:
    labels = _load_digits()[1]
    parts = _stratified_split(labels)
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(1797))
    for split, share in (("val", 0.1), ("test", 0.2)):
        counts = torch.bincount(labels[parts[split]], minlength=10)
        assert ((counts - share * torch.bincount(labels)).abs() <= 1).all()
    digest = hashlib.sha256(parts["test"].to(torch.int32).numpy().tobytes()).hexdigest()
    assert digest == "43926430890124d332273061526f110a5f2434d53de8bb48eb7ab7800a53d55a"
