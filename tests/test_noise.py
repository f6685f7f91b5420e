"""Stateless randomness: pure functions, uniform, and independent between indices, seeds and pixels."""

from __future__ import annotations

import torch

from vae_lightning.noise import derive_seed, reseed, uniform16

INDEX = torch.arange(4000)


def test_a_pure_function_of_the_index() -> None:
    """The bits of image 7 depend neither on the images beside it nor on earlier draws."""
    torch.rand(10)
    whole = uniform16(INDEX, 65, 3, 1)
    some = torch.tensor([7, 3999, 0, 7])
    assert torch.equal(uniform16(some, 65, 3, 1), whole[some])


def test_known_numbers() -> None:
    """Known bits: they fix the binarisation of validation and test sets, and so every reported likelihood."""
    found = uniform16(torch.tensor([0, 1, 65535, 2**20]), 5, 0).tolist()
    assert found == [
        [32059, 51270, 6617, 22600, 36855],
        [2264, 332, 36738, 50870, 13232],
        [14320, 62015, 63636, 23479, 4550],
        [19095, 14654, 61210, 5876, 26111],
    ]
    assert uniform16(torch.tensor([0, 7]), 3, 3, 1, 2).tolist() == [[21264, 50469, 16979], [38987, 42176, 37102]]


def test_uniform() -> None:
    """260,000 numbers have the mean, the variance and the chi-squared over 64 bins of a uniform distribution."""
    u = uniform16(INDEX, 65, 0).flatten().double()
    n = len(u)
    assert u.min() >= 0
    assert u.max() <= 65535
    assert abs(u.mean() / 65535 - 0.5) < 4.5 * (1 / 12 / n) ** 0.5
    counts = torch.bincount((u / 1024).long(), minlength=64).double()
    chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert 25 < chi2 < 120  # 63 degrees of freedom; the bounds have 1e-6 in each tail


def test_uncorrelated() -> None:
    """The correlation of neighbouring images, neighbouring pixels, seeds and epochs is within 4.5 sigma of zero."""
    u = uniform16(INDEX, 64, 5, 0).double() / 65535 - 0.5
    pairs = {
        "next image": (u[:-1], u[1:]),
        "next pixel": (u[:, :-1], u[:, 1:]),
        "next but one pixel": (u[:, :-2], u[:, 2:]),
        "other seed": (u, uniform16(INDEX, 64, 6, 0).double() / 65535 - 0.5),
        "other epoch": (u, uniform16(INDEX, 64, 5, 1).double() / 65535 - 0.5),
    }
    for name, (a, b) in pairs.items():
        correlation = 12 * (a * b).mean()
        assert abs(correlation) < 4.5 / a.numel() ** 0.5, name


def test_derived_seeds_differ() -> None:
    """The order of the counters matters. No two of 10^4 neighbours, such as two ranks or two epochs, have one seed."""
    seeds = {derive_seed(seed, epoch, rank) for seed in range(10) for epoch in range(100) for rank in range(10)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_known_seeds() -> None:
    """Known seeds: the noise of a run and the order of its images follow from them."""
    seeds = [derive_seed(*counters) for counters in ((0,), (1, 2), (0, 1, 0, 0), (-1,))]
    assert seeds == [0x6C2E8EC11E8966F3, 0x2722BFE3346D5722, 0x4ECF5EACE85E5D3B, 0x3C1571DE8539D673]


def test_every_bit_of_a_counter_counts() -> None:
    """Each of the 64 bits of each counter changes about half of the seed's 63 bits, so seed 65,536 is not seed 0."""
    for place in range(3):
        for bit in range(64):
            counters = [5, 6, 7]
            counters[place] ^= 1 << bit
            changed = (derive_seed(*counters) ^ derive_seed(5, 6, 7)).bit_count()
            assert 12 < changed < 51, (place, bit)


def test_reseed_repeats_torch() -> None:
    draws = []
    for counters in ((1, 2), (1, 2), (2, 1)):
        reseed(torch.device("cpu"), *counters)
        draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
