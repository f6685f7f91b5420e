"""Scores of whether each latent dimension holds one factor of variation: codes [N, D] against factors [N, F].

`codes` are the posterior means (float). `factors` are the indices of the factors' values (integers). Every score is in
[0, 1], and 1 is best. No score depends on the order or the scale of the dimensions.
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
    """MIG = 1/F sum_k (I(z_a; v_k) - I(z_b; v_k)) / H(v_k); a, b are the two most informative dimensions of factor k.

    Chen et al. 2018 (https://arxiv.org/abs/1802.04942), eq. 6. The means of q(z|x) are put into bins of equal width, as
    in Locatello et al. 2019 (https://arxiv.org/abs/1811.12359). The bins have two consequences: a factor of more than
    `num_bins` values cannot score 1, and the plug-in estimate of I is too high by up to (bins - 1) (values - 1) / 2 N
    nats. This bias is largest if I is small, so a small N makes every gap too small.
    """
    binned = np.stack([_bins(code, num_bins) for code in codes.T], 1)
    gaps = []
    for factor in factors.T:
        information = sorted((_information(code, factor) for code in binned.T), reverse=True)
        gaps.append(_gap(information) / max(_information(factor, factor), 1e-12))  # I(v; v) = H(v)
    return float(np.mean(gaps))


def separated_attribute_predictability(codes: Codes, factors: Factors) -> float:
    """SAP = 1/F sum_k (R^2_a - R^2_b); a, b are the two dimensions that predict factor k best.

    R^2_d belongs to the linear regression of factor k on dimension d alone. Kumar et al. 2018
    (https://arxiv.org/abs/1711.00848), section 3. Every factor is treated as ordered, with its index as its value. The
    paper uses a classifier's accuracy if a factor has no order (such as a shape).
    """
    standard_codes, standard_factors = _standardise(codes), _standardise(factors)
    r_squared = (standard_codes.T @ standard_factors / len(codes)) ** 2  # [D, F]
    return float(np.mean([_gap(sorted(column, reverse=True)) for column in r_squared.T]))


class DCI(NamedTuple):
    """Disentanglement (each dimension holds one factor), completeness (one dimension holds each factor), accuracy."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes: Codes, factors: Factors, num_trees: int = 100, max_images: int = 2000) -> DCI:
    """1 - H(rows of R), 1 - H(columns of R) and accuracy; R [D, F] is the weight of dimension d in predicting factor k.

    Eastwood & Williams 2018 (https://openreview.net/forum?id=By-7dz-AZ). The rows and columns of R are scaled to sum to
    one; their entropies have the base F and D. Each row counts in proportion to its sum (each column of R sums to one).
    R is the feature importance in scikit-learn's gradient boosted trees. disentanglement_lib (Locatello et al. 2019,
    https://arxiv.org/abs/1811.12359) uses the same trees, so the scores compare with its scores. The paper uses random
    forests, which give a less sparse R. Informativeness is the accuracy on every other image, which the trees have not
    seen; chance level is the share of the commonest value.

    Args:
        codes: float [N, D].
        factors: integers [N, F].
        num_trees: the boosted trees for each value of a factor.
        max_images: the largest number of images, evenly spread over all. Boosting takes 2.4 ms per tree on a CPU core,
            27 s for factors with 113 values in all.
    """
    from sklearn.ensemble import GradientBoostingClassifier  # imported here because the import takes a second

    spread = np.linspace(0, len(codes) - 1, min(max_images, len(codes))).round().astype(int)
    train, test = spread[::2], spread[1::2]
    importance, accuracy = [], []
    for factor in factors.T:
        if len(np.unique(factor[train])) < 2:
            importance.append(np.zeros(codes.shape[1]))  # a constant factor: no dimension matters
            accuracy.append(np.mean(factor[test] == factor[train][0]))
            continue
        trees = GradientBoostingClassifier(n_estimators=num_trees, random_state=0)
        with warnings.catch_warnings():  # a factor may have few images per value
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
    """The accuracy of guessing the fixed factor of a group of images from the dimension that varies least in the group.

    Kim & Mnih 2018 (https://arxiv.org/abs/1802.05983), section 4 and appendix B. Each vote draws a factor, a value of
    this factor, and up to `group_size` images with this value. The vote goes to the dimension of the smallest variance,
    after each dimension is scaled by its standard deviation over all images. `num_votes` votes make the majority table;
    as many other votes measure the accuracy. Chance level is 1/F. The score is NaN if no two images share a value.
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
    """sqrt E[((s_A - s_B) / 2)^2]; s_A and s_B are the scores of the two halves of a random split of the images.

    The average is over `num_splits` splits. This is the delete-half jackknife (Shao & Wu 1989, Ann. Statist. 17), which
    also holds for scores that are not smooth; its expected square for a mean is s^2 / N. A bootstrap would be wrong: it
    draws images twice, so that `dci` tests on images it has trained on, and `mutual_information_gap` finds more
    information. Ten splits give the error within about a fifth. The error is NaN for fewer than four images, because a
    half then has a single image.
    """
    if len(codes) < 4:
        return np.full_like(np.asarray(score(codes, factors), dtype=float), np.nan)
    random = np.random.default_rng(seed)
    halves = [np.array_split(random.permutation(len(codes)), 2) for _ in range(num_splits)]
    gaps = [np.subtract(score(codes[a], factors[a]), score(codes[b], factors[b])) for a, b in halves]
    return np.sqrt(np.mean(np.square(gaps), 0)) / 2


def _bins(code: NDArray, num_bins: int) -> NDArray[np.integer]:
    """The bin of each value, among `num_bins` bins of equal width between the smallest and the largest value."""
    edges = np.linspace(code.min(), code.max(), num_bins + 1)
    return np.digitize(code, edges[1:-1])


def _information(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """The mutual information I(a; b) of two columns of small integers, in nats."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    occurs = joint > 0
    return float(np.sum(joint[occurs] * np.log(joint[occurs] / independent[occurs])))


def _entropy(r: NDArray, axis: int) -> NDArray:
    """The entropy of r, scaled to sum to one along the axis, to the base of the axis' length; 1 if r is all zero."""
    size, total = r.shape[axis], r.sum(axis, keepdims=True)
    p = np.divide(r, total, out=np.full_like(r, 1 / size), where=total > 0)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis) / np.log(max(size, 2))


def _standardise(values: NDArray) -> NDArray:
    """Scale each column to mean 0 and variance 1; a constant column becomes 0."""
    centred = values - values.mean(0)
    deviation = centred.std(0)
    return np.divide(centred, deviation, out=np.zeros_like(centred, dtype=float), where=deviation > 1e-12)


def _gap(descending: list[float]) -> float:
    """The first value minus the second; minus 0 if there is only one dimension."""
    return descending[0] - (descending[1] if len(descending) > 1 else 0.0)


class Disentanglement(Evaluator):
    """MIG, SAP, DCI and the FactorVAE score of E_q[z|x] over the test images, with all latents concatenated.

    Use these scores with data whose factors of variation are known: `data.factors` names the columns of `label`. The
    groups of the FactorVAE score are drawn from the test set, so their size is limited by the test set. Each score has
    a standard error over images (`standard_error`); the spread over training seeds is not part of the error. The error
    of DCI uses three splits, because the trees take time, and is accurate to about two fifths.

    Args:
        num_trees: The number of DCI's boosted trees for each value of a factor. Fewer trees are faster, but give
            another score.
    """

    _names: ClassVar[Sequence[str]] = ("mig", "sap", "factor_vae_score", *(f"dci_{name}" for name in DCI._fields))
    units: ClassVar[Mapping[str, str]] = dict.fromkeys(_names, "1 at best")
    min_images = 200

    def __init__(self, num_trees: int = 100) -> None:
        if num_trees < 1:
            raise UserError(f"Disentanglement: num_trees is {num_trees}; it must be at least 1")
        self.num_trees = num_trees

    def why_not_applicable(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        if data is None or not data.factors:
            name = "the data" if data is None else type(data).__name__
            return f"the factors of {name} are not known (those of ProceduralSprites are)"
        if len(data.images("test").pixels) < self.min_images:
            return f"there are {len(data.images('test').pixels)} test images; the scores need {self.min_images}"
        return None if trace.continuous() else "the model has no latents"

    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        self._codes: list[torch.Tensor] = []
        self._factors: list[torch.Tensor] = []

    def update(self, trace: Trace, batch: Batch) -> None:
        self._codes.append(torch.cat([mean_draws(trace, latent).mean(0) for latent in trace.continuous().values()], 1))
        self._factors.append(batch["label"])

    def compute(self) -> dict[str, Finding]:
        codes = in_order(self._codes).double().cpu().numpy()
        factors = in_order(self._factors).cpu().numpy()
        dci_score = partial(dci, num_trees=self.num_trees)
        found: list[tuple[float, float]] = []
        for score in (mutual_information_gap, separated_attribute_predictability, factor_vae_score, dci_score):
            values = score(codes, factors)
            errors = standard_error(score, codes, factors, num_splits=3 if score is dci_score else 10)
            found += zip(np.atleast_1d(values), np.atleast_1d(errors), strict=True)
        numbers: dict[str, Finding] = {}
        for name, (value, error) in zip(self._names, found, strict=True):
            numbers |= {name: float(value), f"{name}_stderr": float(error)}
        return numbers
