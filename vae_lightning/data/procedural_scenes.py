"""Drawn scenes of coloured shapes that may hide each other, for models that part an image into its objects."""

from __future__ import annotations

from typing import Any

import torch

from vae_lightning.data.base import SPLITS, ImageDataModule, Split
from vae_lightning.data.scenes import Scenes, boxes_of
from vae_lightning.runs.machine import available_memory
from vae_lightning.synthetic import PALETTE, NoRoomError, draw_coloured_shapes
from vae_lightning.types import UserError


class ProceduralScenes(ImageDataModule):
    """`min_objects` .. `max_objects` coloured circles, squares and triangles on grey, and which pixel is whose.

    Use it for models that part an image into objects without labels. Later objects hide parts of earlier ones, but at
    least 40 % of each is seen. Edges are hard, so the maps are exact. These are drawings of our own: numbers measured
    on other sets of scenes, such as Multi-dSprites or CLEVR, cannot be compared with numbers measured here.

    A batch holds `x`, float32 [B, 3, S, S] in [0, 1]; `segmentation`, uint8 [B, S, S], 0 for the background and k for
    object k; `count`, int64 [B]; `boxes`, float32 [B, max_objects, 4], the top, left, height and width of the visible
    part of each object in pixels, -1 if there is no such object.

    The number of objects is uniform. Scene i of a split depends on `scene_seed` and i alone, not on the seed of the
    run: all runs are measured on one test set. The scenes are drawn at each start, in seconds.

    Args:
        data_dir: Not used; nothing is read or written.
        image_size: S, height and width of an image in pixels.
        max_objects: The largest number of objects in an image.
        min_objects: The smallest number of objects in an image.
        distinct_colours: Whether all objects of an image have colours of their own, out of 8. false is the hard set:
            a model that parts images by colour cannot tell two touching objects of one colour apart.
        background: The brightest grey of a background, from 0 to 1; each image has its own, uniform from black. 0 makes
            all of them black, as `AIR` assumes.
        num_images: The number of images of train, val and test.
        scene_seed: The seed of the scenes.
        kwargs: Arguments of `ImageDataModule`, except `flip`.

    Raises:
        UserError: if a number is outside its range.
    """

    def __init__(
        self,
        data_dir: str = "data",
        *,
        image_size: int = 32,
        max_objects: int = 3,
        min_objects: int = 1,
        distinct_colours: bool = True,
        background: float = 0.5,
        num_images: tuple[int, int, int] = (20_000, 1_000, 1_000),
        scene_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, flip=False, **kwargs)
        least = {"image_size": (image_size, 16), "max_objects": (max_objects, 1), "min_objects": (min_objects, 0)}
        for name, (number, smallest) in {**least, "num_images": (min(num_images), 1)}.items():
            if number < smallest:
                raise UserError(f"ProceduralScenes: {name} is {number}; it must be at least {smallest}")
        if min_objects > max_objects:
            raise UserError(f"ProceduralScenes: min_objects {min_objects} is above max_objects {max_objects}")
        most = len(PALETTE) if distinct_colours else 255
        if max_objects > most:
            why = f" with {most} colours; --data.distinct_colours=false allows more" if distinct_colours else ""
            raise UserError(f"ProceduralScenes: max_objects is {max_objects}; it must be at most {most}{why}")
        if not 0 <= background <= 1:
            raise UserError(f"ProceduralScenes: background is {background}; it is a grey from 0 to 1")
        self.min_objects, self.distinct_colours, self.background = min_objects, distinct_colours, background
        self.scene_seed = scene_seed
        self.num_images = dict(zip(SPLITS, num_images, strict=True))
        self.image_shape, self.num_objects = (3, image_size, image_size), max_objects

    def load(self, split: Split) -> Scenes:
        count, size = self.num_images[split], self.image_shape[-1]
        needed, free = 2 * 4 * count * size**2, available_memory()
        if free is not None and needed > free:
            raise UserError(
                f"ProceduralScenes: {count:,} images take {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB "
                "are free; lower --data.num_images"
            )
        num_greys = 1 + int(255 * self.background)
        seeds, index = (self.scene_seed, SPLITS.index(split)), torch.arange(count)
        try:
            fields = draw_coloured_shapes(
                index, size, self.num_objects, self.min_objects, self.distinct_colours, num_greys, seeds
            )
        except NoRoomError as error:
            raise UserError(f"ProceduralScenes: {error}; choose fewer --data.max_objects") from error
        maps = fields["segmentation"]
        boxes = torch.stack([boxes_of(maps == k) for k in range(1, self.num_objects + 1)], 1)
        return Scenes({**{name: fields[name] for name in ("x", "segmentation", "count")}, "boxes": boxes})
