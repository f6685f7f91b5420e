"""Does each latent dimension hold one factor of variation? Scores of codes [N, D] against known factors [N, F].

`codes`: float, the posterior means; `factors`: integers, the index of each factor's value. All scores lie in [0, 1],
1 at best, and depend on neither the order nor the scale of the dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vae_lightning.data import ImageDataModule
from vae_lightning.metrics.evaluator import Evaluator, Finding, in_order, mean_draws
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

Codes = NDArray[np.floating]
Factors = NDArray[np.integer]
Score: TypeAlias = Callable[[Codes, Factors], float | tuple[float, ...]]


def mutual_information_gap(codes: Codes, factors: Factors, num_bins: int = 20) -> float:
    """MIG = 1/F sum_k (I(z_a; v_k) - I(z_b; v_k)) / H(v_k), a and b the two dimensions that say most of factor k.

    Chen et al. 2018 (https://arxiv.org/abs/1802.04942), eq. 6; with the means of q(z|x) in `num_bins` bins of equal
    width, as Locatello et al. 2019 (https://arxiv.org/abs/1811.12359) have it. So a factor of more than `num_bins`
    values cannot score 1. And the plug-in estimate of I is too high by up to (bins - 1) (values - 1) / 2 N nats, most
    where there is little: a small N makes every gap too small.
    """
    binned = np.stack([_bins(code, num_bins) for code in codes.T], 1)
    gaps = []
    for factor in factors.T:
        information = sorted((_information(code, factor) for code in binned.T), reverse=True)
        gaps.append(_gap(information) / max(_information(factor, factor), 1e-12))  # I(v; v) = H(v)
    return float(np.mean(gaps))


def separated_attribute_predictability(codes: Codes, factors: Factors) -> float:
    """SAP = 1/F sum_k (R^2_a - R^2_b), R^2_d that of the linear regression of factor k on dimension d alone.

    Kumar et al. 2018 (https://arxiv.org/abs/1711.00848), section 3. Every factor is taken as ordered, its index as its
    value, also one that has no order (a shape), for which the source takes the accuracy of a classifier.
    """
    standard_codes, standard_factors = _standardise(codes), _standardise(factors)
    r_squared = (standard_codes.T @ standard_factors / len(codes)) ** 2  # [D, F]
    return float(np.mean([_gap(sorted(column, reverse=True)) for column in r_squared.T]))


class DCI(NamedTuple):
    """Disentanglement (a dimension holds one factor), completeness (a factor is held by one dimension), accuracy."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes: Codes, factors: Factors, num_trees: int = 100, max_images: int = 2000) -> DCI:
    """From R [D, F], how much dimension d matters in predicting factor k: 1 - H(rows), 1 - H(columns), accuracy.

    Eastwood & Williams 2018 (https://openreview.net/forum?id=By-7dz-AZ): the entropies, of the rows and columns of R
    scaled to sum to one, have base F and D, and rows weigh by their sums (each column sums to one). R is the importance
    of features in scikit-learn's gradient boosted trees, with `num_trees` for each value of a factor, as in
    disentanglement_lib (Locatello et al. 2019, https://arxiv.org/abs/1811.12359), whose numbers these are; the paper
    has random forests, whose R is less sparse. Informativeness is the accuracy on every other image, which the trees
    have not seen; chance is the share of the commonest value.
    Of `max_images` images at most, evenly spread over all, because boosting is slow: 2.4 ms a tree on a CPU core, so
    27 s for factors of 113 values in all.
    """
    from sklearn.ensemble import GradientBoostingClassifier  # here: a second of imports

    spread = np.linspace(0, len(codes) - 1, min(max_images, len(codes))).round().astype(int)
    train, test = spread[::2], spread[1::2]
    importance, accuracy = [], []
    for factor in factors.T:
        if len(np.unique(factor[train])) < 2:
            importance.append(np.zeros(codes.shape[1]))  # nothing to predict, which no dimension tells
            accuracy.append(np.mean(factor[test] == factor[train][0]))
            continue
        trees = GradientBoostingClassifier(n_estimators=num_trees, random_state=0)
        with warnings.catch_warnings():  # of few images for a factor's values
            warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
            trees.fit(codes[train], factor[train])
        importance.append(trees.feature_importances_)
        accuracy.append(trees.score(codes[test], factor[test]))
    r = np.stack(importance, 1)  # [D, F]
    rows = 1 - _entropy(r, axis=1)
    disentanglement = float(np.sum(rows * r.sum(1)) / max(r.sum(), 1e-12))
    return DCI(disentanglement, float(np.mean(1 - _entropy(r, axis=0))), float(np.mean(accuracy)))


def factor_vae_score(
    codes: Codes, factors: Factors, num_votes: int = 800, group_size: int = 64, seed: int = 0
) -> float:
    """Accuracy of the majority vote: which factor is fixed, from the dimension that varies least in a group of images?

    Kim & Mnih 2018 (https://arxiv.org/abs/1802.05983), section 4 and appendix B. Each vote: a factor at random, a value
    of it, up to `group_size` images that have it; the dimension of the smallest variance, each scaled by its standard
    deviation over all images. `num_votes` votes make the table, as many others are predicted. Chance is 1/F. NaN where
    no two images share a value: no variance is known then.
    """
    moving = codes[:, codes.std(0) > 0]
    if moving.shape[1] == 0:
        return 1 / factors.shape[1]
    scaled, random = moving / moving.std(0), np.random.default_rng(seed)
    votes = np.zeros((2, moving.shape[1], factors.shape[1]))
    for vote in range(2 * num_votes):
        k = random.integers(factors.shape[1])
        group = np.flatnonzero(factors[:, k] == random.choice(factors[:, k]))
        group = random.permutation(group)[:group_size]
        votes[vote % 2, scaled[group].var(0).argmin(), k] += len(group) > 1
    if votes[1].sum() == 0:
        return float("nan")
    guess = votes[0].argmax(1)  # [D]
    return float(votes[1][np.arange(len(guess)), guess].sum() / votes[1].sum())


def standard_error(
    score: Score, codes: Codes, factors: Factors, num_splits: int = 10, seed: int = 0
) -> NDArray[np.floating]:
    """sqrt E[((s_A - s_B) / 2)^2], A and B the two halves of the images in a random split, s the score of each.

    Over `num_splits` splits: the jackknife that leaves out half (Shao & Wu 1989, Ann. Statist. 17), whose square for a
    mean is s^2 / N on average, and which holds for scores that are not smooth. Not the bootstrap: an image drawn twice
    is both learned from and asked for in `dci`, and adds to what is found by `mutual_information_gap`. Ten splits give
    the error to about a fifth of it. NaN of fewer than four images, whose halves have one.
    """
    if len(codes) < 4:
        return np.full_like(np.asarray(score(codes, factors), dtype=float), np.nan)
    random = np.random.default_rng(seed)
    halves = [np.array_split(random.permutation(len(codes)), 2) for _ in range(num_splits)]
    gaps = [np.subtract(score(codes[a], factors[a]), score(codes[b], factors[b])) for a, b in halves]
    return np.sqrt(np.mean(np.square(gaps), 0)) / 2


def _bins(code: NDArray, num_bins: int) -> NDArray[np.integer]:
    """The bin of each value: `num_bins` of equal width between the least and the greatest."""
    edges = np.linspace(code.min(), code.max(), num_bins + 1)
    return np.digitize(code, edges[1:-1])


def _information(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """I(a; b) of two columns of small integers, in nats."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    there = joint > 0
    return float(np.sum(joint[there] * np.log(joint[there] / independent[there])))


def _entropy(r: NDArray, axis: int) -> NDArray:
    """H of r scaled to sum to one along the axis, to the base of its length; 1 where all is zero."""
    size, total = r.shape[axis], r.sum(axis, keepdims=True)
    p = np.divide(r, total, out=np.full_like(r, 1 / size), where=total > 0)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis) / np.log(max(size, 2))


def _standardise(values: NDArray) -> NDArray:
    """Mean 0, variance 1 in each column; a constant column becomes 0."""
    centred = values - values.mean(0)
    deviation = centred.std(0)
    return np.divide(centred, deviation, out=np.zeros_like(centred, dtype=float), where=deviation > 1e-12)


def _gap(descending: list[float]) -> float:
    """Between the first two; a single dimension has no second."""
    return descending[0] - (descending[1] if len(descending) > 1 else 0.0)


class Disentanglement(Evaluator):
    """MIG, SAP, DCI and the FactorVAE score of E_q[z|x], all latents side by side, over the test images.

    For data whose factors of variation are known: `data.factors` names the columns of `label`. From a sample, not from
    images drawn for the purpose, so that the FactorVAE score has groups as large as the test set allows. Each with its
    standard error over images, by `standard_error`: the model is the same, so that of seeds is not in it. DCI's is of
    three splits, and known to two fifths of it, because the trees take time.

    Args:
        num_trees: DCI's boosted trees for each value of a factor; fewer are faster and another score.
    """

    _names: ClassVar[Sequence[str]] = ("mig", "sap", "factor_vae_score", *(f"dci_{name}" for name in DCI._fields))
    units: ClassVar[Mapping[str, str]] = dict.fromkeys(_names, "1 at best")
    min_images = 200

    def __init__(self, num_trees: int = 100) -> None:
        if num_trees < 1:
            raise UserError(f"Disentanglement: num_trees is {num_trees}; it must be at least 1")
        self.num_trees = num_trees

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        if data is None or not data.factors:
            name = "the data" if data is None else type(data).__name__
            return f"the factors of {name} are not known (those of ProceduralSprites are)"
        if len(data.images("test").pixels) < self.min_images:
            return f"there are {len(data.images('test').pixels)} test images; it needs {self.min_images}"
        return None if trace.latents else "the model has no latents"

    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        self._codes: list[torch.Tensor] = []
        self._factors: list[torch.Tensor] = []

    def update(self, trace: Trace, batch: Batch) -> None:
        self._codes.append(torch.cat([mean_draws(latent).mean(0) for latent in trace.latents.values()], 1))
        self._factors.append(batch["label"])

    def compute(self) -> dict[str, Finding]:
        codes = in_order(self._codes).double().cpu().numpy()
        factors = in_order(self._factors).cpu().numpy()
        of_trees = partial(dci, num_trees=self.num_trees)
        found: list[tuple[float, float]] = []
        for score in (mutual_information_gap, separated_attribute_predictability, factor_vae_score, of_trees):
            values = score(codes, factors)
            errors = standard_error(score, codes, factors, num_splits=3 if score is of_trees else 10)
            found += zip(np.atleast_1d(values), np.atleast_1d(errors), strict=True)
        named = zip(self._names, found, strict=True)
        return {name + end: float(x) for name, one in named for end, x in zip(("", "_stderr"), one, strict=True)}
