"""Disentanglement scores of codes with known scores: the factors themselves, turned, repeated, mixed, or noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier

from vae_lightning.metrics.disentanglement import (
    Disentanglement,
    dci,
    factor_vae_score,
    mutual_information_gap,
    separated_attribute_predictability,
    standard_error,
)
from vae_lightning.types import UserError

RANDOM = np.random.default_rng(0)
SIZES = (3, 6, 10)
FACTORS = np.stack([RANDOM.integers(size, size=2000) for size in SIZES], 1)
NOISE = RANDOM.normal(size=(2000, 3))
PERFECT = FACTORS + 1e-3 * NOISE


Score = Callable[[NDArray, NDArray], float | tuple[float, ...]]
FEW_TREES = partial(dci, num_trees=10)  # the laws hold for any number of trees, and a hundred take ten times as long
SCORES: list[Score] = [mutual_information_gap, separated_attribute_predictability, factor_vae_score, FEW_TREES]


def of(score: Score, codes: NDArray) -> list[float]:
    """The score as a list, because DCI has three numbers."""
    return np.atleast_1d(score(codes, FACTORS)).tolist()


def turned(codes: NDArray) -> NDArray:
    """The first two dimensions, of equal variance, turned by 45 degrees."""
    a, b = ((code - code.mean()) / code.std() for code in codes.T[:2])
    return np.stack([a + b, a - b, codes[:, 2]], 1)


@pytest.mark.parametrize("score", SCORES)
def test_a_code_that_is_the_factors_scores_one(score: Score) -> None:
    assert min(of(score, PERFECT)) > 0.99


@pytest.mark.parametrize("score", SCORES)
def test_order_sign_and_scale_of_the_dimensions_do_not_matter(score: Score) -> None:
    blurred = FACTORS + 0.5 * NOISE
    assert 0 < min(of(score, blurred)) < 1 or score is factor_vae_score
    other = blurred[:, [2, 0, 1]] * [1.0, -100.0, 0.01] + 7
    assert of(score, other) == pytest.approx(of(score, blurred), abs=0.02)


@pytest.mark.parametrize("score", SCORES)
def test_noise_scores_nothing(score: Score) -> None:
    """Only chance remains: one third of the FactorVAE score's votes, and one value of all in each factor."""
    chance = {factor_vae_score: [1 / 3], FEW_TREES: [0, 0, np.mean([1 / size for size in SIZES])]}
    assert of(score, NOISE) == pytest.approx(chance.get(score, [0]), abs=0.08)


@pytest.mark.parametrize("score", SCORES)
def test_a_dimension_of_noise_beside_a_perfect_code_changes_nothing(score: Score) -> None:
    assert min(of(score, np.concatenate([PERFECT, NOISE[:, :1]], 1))) > 0.98


@pytest.mark.parametrize("score", SCORES)
def test_a_dimension_that_is_constant_changes_nothing(score: Score) -> None:
    assert min(of(score, np.concatenate([PERFECT, np.zeros((2000, 1))], 1))) > 0.98


def test_a_factor_that_two_dimensions_hold_has_no_gap() -> None:
    """MIG and SAP lose this factor's third. Each dimension holds one factor, but two dimensions hold the factor."""
    codes = np.concatenate([PERFECT, FACTORS[:, :1] + 1e-3 * NOISE[:, 1:2]], 1)
    assert mutual_information_gap(codes, FACTORS) == pytest.approx(2 / 3, abs=0.01)
    assert separated_attribute_predictability(codes, FACTORS) == pytest.approx(2 / 3, abs=0.01)
    assert factor_vae_score(codes, FACTORS) == pytest.approx(1, abs=0.01)
    found = FEW_TREES(codes, FACTORS)
    assert found.disentanglement > 0.98
    assert found.completeness < 0.9
    assert found.informativeness > 0.98


def test_a_turned_code_says_as_much_and_is_disentangled_no_more() -> None:
    """Two dimensions hold two factors alike: their gaps are 0 and a third remains; predictions stay accurate."""
    codes = turned(PERFECT)
    assert mutual_information_gap(codes, FACTORS) == pytest.approx(1 / 3, abs=0.05)
    assert separated_attribute_predictability(codes, FACTORS) == pytest.approx(1 / 3, abs=0.03)
    found = FEW_TREES(codes, FACTORS)
    assert found.disentanglement < 0.8
    assert found.completeness < 0.8
    assert found.informativeness > 0.9


def test_two_factors_in_one_dimension() -> None:
    """One dimension of two factors has disentanglement 1 - log 2 / log 3."""
    codes = np.stack([FACTORS[:, 0] + 3 * FACTORS[:, 1], FACTORS[:, 2]], 1) + 1e-3 * NOISE[:, :2]
    found = FEW_TREES(codes, FACTORS)
    assert found.completeness > 0.98
    assert found.disentanglement == pytest.approx((2 * (1 - np.log(2) / np.log(3)) + 1) / 3, abs=0.01)
    assert factor_vae_score(codes, FACTORS) < 0.9


def test_mutual_information_gap_by_hand() -> None:
    """One dimension holds one bit of a factor of two bits, the other none: the gap is one half."""
    factor = np.arange(400) % 4
    codes = np.stack([factor // 2, (np.arange(400) // 4) % 2], 1).astype(float)
    assert mutual_information_gap(codes, factor[:, None]) == pytest.approx(0.5, abs=1e-9)


def test_more_values_than_bins() -> None:
    """20 bins cannot distinguish 40 values, so the score of a perfect code is log 20 / log 40."""
    factor = np.arange(4000) % 40
    codes = np.stack([factor + 0.5, RANDOM.normal(size=4000)], 1)
    gap = np.log(20) / np.log(40)
    assert mutual_information_gap(codes, factor[:, None]) == pytest.approx(gap, abs=0.05)  # the noise's plug-in bias
    assert mutual_information_gap(codes[:, :1], factor[:, None]) == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_a_factor_that_never_moves_is_found_nowhere(score: Score) -> None:
    """A constant factor beside three perfect ones leaves three quarters of each mean; it loses votes."""
    still = np.concatenate([FACTORS, np.zeros((2000, 1), int)], 1)
    found = np.atleast_1d(score(PERFECT, still))
    assert found[min(1, len(found) - 1)] == pytest.approx(0.75, abs=0.02 if score is not factor_vae_score else 0.1)


def test_the_error_of_a_mean_is_its_standard_error() -> None:
    """The average over splits is s / sqrt(N), for both parts of a score with two parts."""
    codes = RANDOM.normal(size=(60, 2)) * [1.0, 30.0]
    found = standard_error(lambda codes, _: tuple(codes.mean(0)), codes, FACTORS[:60], num_splits=4000)
    assert found == pytest.approx(codes.std(0, ddof=1) / np.sqrt(60), rel=0.04)


QUICK = partial(factor_vae_score, num_votes=100)


@pytest.mark.parametrize("score", [mutual_information_gap, separated_attribute_predictability, QUICK])
def test_the_error_of_a_score_is_its_spread_over_samples(score: Score) -> None:
    """The error is within a factor 1.6 of the spread over 40 samples of 800 images; ten splits know it to a fifth."""
    drawn = [np.stack([RANDOM.integers(size, size=800) for size in SIZES], 1) for _ in range(40)]
    codes = [factors + 1.5 * RANDOM.normal(size=(800, 3)) for factors in drawn]
    spread = np.std([score(c, f) for c, f in zip(codes, drawn, strict=True)], ddof=1)
    errors = [standard_error(score, c, f).item() for c, f in list(zip(codes, drawn, strict=True))[:4]]
    assert 1 / 1.6 < np.sqrt(np.mean(np.square(errors))) / spread < 1.6


def test_few_images_of_many_values_are_no_warning() -> None:
    """Halves of 200 images train on 50 images of 40 orientations; the error is computed without a warning."""
    factor = RANDOM.integers(40, size=(200, 1))
    errors = standard_error(partial(dci, num_trees=2), factor + RANDOM.normal(size=(200, 2)), factor, num_splits=2)
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("score", SCORES)
def test_a_code_that_never_moves_scores_nothing(score: Score) -> None:
    """Only chance remains: the test share of the value that is commonest among the training images."""
    train, test = FACTORS[::2], FACTORS[1::2]
    commonest = np.mean([np.mean(b == np.bincount(a).argmax()) for a, b in zip(train.T, test.T, strict=True)])
    chance = {factor_vae_score: [1 / 3], FEW_TREES: [0, 0, commonest]}
    assert of(score, np.zeros((2000, 2))) == pytest.approx(chance.get(score, [0]), abs=1e-9)


def entangled(count: int) -> tuple[NDArray, NDArray]:
    """Codes [N, 5] that mix three factors of 2, 3 and 4 values, with noise."""
    random = np.random.RandomState(7)  # its stream is frozen
    factors = np.stack([random.randint(size, size=count) for size in (2, 3, 4)], 1)
    mix = np.array([[1.0, 0.3, 0.0, 0.2, 0.0], [0.0, 1.0, 0.5, 0.0, 0.0], [0.4, 0.0, 1.0, 0.0, 0.3]])
    return (factors - factors.mean(0)) / factors.std(0) @ mix + 0.4 * random.normal(size=(count, 5)), factors


def test_the_scores_of_disentanglement_lib_on_the_same_codes() -> None:
    """The scores equal those of its own functions; its trees are random, which changes the third digit of DCI."""
    codes, factors = entangled(600)
    assert mutual_information_gap(codes, factors) == pytest.approx(0.457003, abs=5e-7)
    found = dci(codes, factors)
    assert found.disentanglement == pytest.approx(0.4661, abs=4e-3)
    assert found.completeness == pytest.approx(0.5284, abs=4e-3)
    assert found.informativeness == pytest.approx(0.8633, abs=5e-3)


def test_dci_by_its_formulas_from_scikit_learns_boosted_trees() -> None:
    """The trees have their defaults, rows count by their importance, entropies have the base of their length."""
    codes, factors = entangled(600)
    fitted = [GradientBoostingClassifier(random_state=0).fit(codes[::2], factor[::2]) for factor in factors.T]
    r = np.stack([trees.feature_importances_ for trees in fitted], 1)  # [5, 3]
    rows = [1 - scipy.stats.entropy(row, base=3) for row in r]
    columns = [1 - scipy.stats.entropy(column, base=5) for column in r.T]
    scores = [trees.score(codes[1::2], factor[1::2]) for trees, factor in zip(fitted, factors.T, strict=True)]
    expected = (np.average(rows, weights=r.sum(1)), np.mean(columns), np.mean(scores))
    assert dci(codes, factors) == pytest.approx(expected, abs=1e-9)


def test_dci_is_of_images_that_are_spread_over_all() -> None:
    """The images are sorted by a factor, so the first half has only two of its four values."""
    codes, factors = entangled(600)
    order = np.argsort(factors[:, 2], kind="stable")
    codes, factors = codes[order], factors[order]
    rows = np.linspace(0, 599, 300).round().astype(int)
    few = partial(dci, num_trees=5)
    assert few(codes, factors, max_images=300) == few(codes[rows], factors[rows])
    assert few(codes, factors, max_images=300) != few(codes[:300], factors[:300])
    assert few(codes, factors, max_images=600) == few(codes, factors)


def test_a_metric_of_no_trees_is_refused() -> None:
    with pytest.raises(UserError, match="num_trees is 0; it must be at least 1"):
        Disentanglement(num_trees=0)
