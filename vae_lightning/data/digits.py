"""The default data set: the handwritten digits that come with scikit-learn. No download, no account."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vae_lightning.data.base import ImageDataModule, Split
from vae_lightning.noise import derive_seed
from vae_lightning.storage.loader import Images


class Digits(ImageDataModule):
    """1,797 digits of 8 x 8 pixels with 17 grey levels (Alpaydin & Kaynak, UCI 1998; the copy within scikit-learn).

    Use it for a first run or a quick test: training takes about a minute on a CPU. The split is fixed and stratified: a
    tenth of each class is `val`, a fifth is `test`. The natural likelihood of the grey levels is `Binomial` with
    num_steps = 16. `data_dir` is not used. The arguments are those of `ImageDataModule`.
    """

    image_shape = (1, 8, 8)

    def load(self, split: Split) -> Images:
        pixels, labels = _load_digits()
        index = _stratified_split(labels)[split]
        return Images(pixels[index], labels[index], max_value=16)


@cache
def _load_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # here: the import takes a second, and no other data set needs it

    digits = load_digits()
    return torch.from_numpy(digits.images).to(torch.uint8)[:, None], torch.from_numpy(digits.target).long()


def _stratified_split(labels: Tensor) -> dict[Split, Tensor]:
    """Sorted indices of each split. Within a class, a hash of the index decides: no library version changes it."""
    indices: dict[Split, list[int]] = {"train": [], "val": [], "test": []}
    for label in labels.unique().tolist():
        members = sorted((labels == label).nonzero().flatten().tolist(), key=derive_seed)
        num_val, num_test = len(members) // 10, len(members) // 5
        indices["val"] += members[:num_val]
        indices["test"] += members[num_val : num_val + num_test]
        indices["train"] += members[num_val + num_test :]
    return {split: torch.tensor(sorted(index)) for split, index in indices.items()}
