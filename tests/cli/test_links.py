"""What the data tell a model by name, and what is said if data and configuration do not agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from vae_lightning.cli.links import drop_untold, told
from vae_lightning.data import DataModule, Digits, Examples
from vae_lightning.data.module import TOLD, Split
from vae_lightning.models import CVAE, VAE
from vae_lightning.recipes import arguments
from vae_lightning.types import UserError


class Words(DataModule):
    """Says its vocabulary and its shape."""

    x_shape = (7,)
    vocabulary = 30

    def load(self, split: Split) -> Examples:
        return Examples({"x": torch.zeros(4, 7, dtype=torch.long)})


class Reader(VAE):
    """Needs a vocabulary and a number of actions; its number of classes has a default."""

    def __init__(self, vocabulary: int, action_shape: tuple[int, ...], num_classes: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_an_argument_takes_what_the_data_say() -> None:
    assert told("vocabulary", Words(), Reader, None) == 30
    assert told("image_shape", Digits(), VAE, None) == (1, 8, 8)
    assert told("x_shape", Digits(), VAE, None) is None  # VAE has no such argument
    assert Digits().x_shape == (1, 8, 8)


def test_an_argument_keeps_its_setting_or_default_if_the_data_do_not_say_it() -> None:
    assert told("num_classes", Words(), Reader, 5) == 5
    assert told("num_classes", Words(), Reader, 12) == 12
    assert told("action_shape", Words(), Reader, [3]) == [3]


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("vocabulary", 31, "--model.vocabulary is 31, but Words has 30; leave the setting out"),
        ("action_shape", None, "Reader needs action_shape, and the data set Words has none to give; "),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, setting: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        told(name, Words(), Reader, setting)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_setting_that_says_the_same_is_no_mistake() -> None:
    assert told("vocabulary", Words(), Reader, 30) == 30
    assert told("image_shape", Digits(), CVAE, [1, 8, 8]) == (1, 8, 8)


def test_a_saved_configuration_leaves_out_what_other_data_may_tell() -> None:
    path = f"{Reader.__module__}.Reader"
    settings = Namespace(vocabulary=None, action_shape=[3], num_classes=5, latent_size=2)
    model = Namespace(class_path=path, init_args=settings)
    drop_untold(model)
    assert model.init_args.as_dict() == {"action_shape": [3], "latent_size": 2}


def test_every_name_is_an_attribute_that_a_data_set_may_set() -> None:
    assert set(TOLD) <= set(DataModule.__annotations__)
    assert all(not hasattr(Words(), name) for name in TOLD if name not in ("x_shape", "vocabulary"))
    assert "image_shape" in arguments(VAE)
