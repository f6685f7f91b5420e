"""Drawn data sets: the factors are the labels, the splits are disjoint, and impossible numbers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vae_lightning.data import procedural
from vae_lightning.data.procedural import ProceduralFaces, ProceduralSprites
from vae_lightning.synthetic import draw_faces, draw_sprites
from vae_lightning.types import UserError


def test_faces(tmp_path: Path) -> None:
    data = ProceduralFaces(str(tmp_path), num_images=60)
    data.prepare_data()
    parts = [data.images(split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert [len(part.pixels) for part in parts] == [54, 3, 3]
    pixels, attributes = draw_faces(torch.arange(60))
    assert torch.equal(torch.cat([part.pixels for part in parts]), pixels)
    assert torch.equal(torch.cat([part.labels for part in parts if part.labels is not None]), attributes)


def test_sprites_have_their_factors_as_labels(tmp_path: Path) -> None:
    data = ProceduralSprites(str(tmp_path), num_images=200, binarisation="threshold")
    data.prepare_data()
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch["x"], (draw_sprites(batch["label"]) > 127).float())
    labels = [data.images(split).labels for split in ("train", "val", "test")]  # type: ignore[arg-type]
    factors = torch.cat([part for part in labels if part is not None])
    assert len(factors.unique(dim=0)) == 200  # no sprite is in two splits


@pytest.mark.parametrize("num_images", [19, 10**6])
def test_impossible_numbers_are_refused(num_images: int) -> None:
    with pytest.raises(UserError, match="num_images"):
        ProceduralSprites(num_images=num_images)


def test_more_images_than_there_is_memory_for_are_refused_before_they_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign config.yaml may ask for any number of images."""
    monkeypatch.setattr(procedural, "draw_faces", None)
    with pytest.raises(
        UserError, match=r"num_images 1,000,000,000,000 takes 11,444,091\.8 GiB, but only .* GiB are free"
    ):
        ProceduralFaces(str(tmp_path), num_images=10**12).prepare_data()
