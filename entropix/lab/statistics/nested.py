"""Does a number know what others do not? Nested logistic models of being right, judged on held-out clusters."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from entropix.lab.statistics.bootstrap import RESAMPLES, cluster_mean, numbered
from entropix.lab.statistics.intervals import Interval

RIDGE = 1.0  # penalty on squared coefficients of standardised features, in items: keeps separable data finite
_STEPS, _CLOSE = 50, 1e-8  # of Newton's method; the largest change of a coefficient that ends it


class Gain(NamedTuple):
    """One of several nested models, on clusters that it was not fitted to."""

    name: str
    loss: float  # minus the mean log-likelihood of an item, nats
    # By how much the loss is below that of the model before, with an interval over clusters.
    gain: Interval | None
    gain_over_first: Interval | None  # the same against the first model


def nested_gains(
    features: Mapping[str, np.ndarray],
    right: Sequence[float] | np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    folds: int = 10,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Gain]:
    """The models that have the first group of features, the first two, and so on; each has a constant.

    features: by name, what each model adds to the one before it, [N] or [N, F]. A model is linear in its features, so
        that a bent relation to one number can look like knowledge of the next: give `bends` of each number.
    right: 0 or 1 for each item. clusters: a name or number for each, such as its document: all items of one are in the
        same of `folds` parts, each of which is judged by a fit to all others.
    Raises a ValueError for features that are not finite or not of this length, and for fewer clusters than folds.
    """
    right_N = np.asarray(right, np.float64)
    index, n = numbered(clusters)
    if n < folds:
        raise ValueError(f"expected at least {folds} clusters for {folds} folds, got {n}")
    fold_of = np.random.default_rng(seed).permutation(n) % folds
    held_KN = fold_of[index] == np.arange(folds)[:, None]
    columns, losses, gains = [np.ones((len(right_N), 1))], [], list[Gain]()
    for name, added in features.items():
        columns.append(_standardised(name, np.asarray(added, np.float64), len(right_N)))
        x_NF = np.concatenate(columns, axis=1)
        coefficient_KF = fit_logistic(x_NF, right_N, (~held_KN).astype(np.float64))
        logit_N = np.einsum("NF,NF->N", x_NF, coefficient_KF[fold_of[index]])
        losses.append(np.logaddexp(0, np.where(right_N > 0, -logit_N, logit_N)))
        since = [
            None
            if len(losses) == 1
            else cluster_mean(before - losses[-1], index, resamples=resamples, seed=seed)
            for before in (losses[max(len(losses) - 2, 0)], losses[0])
        ]
        gains.append(Gain(name, float(losses[-1].mean()), *since))
    return gains


def fit_logistic(x_NF: np.ndarray, right_N: np.ndarray, weight_KN: np.ndarray) -> np.ndarray:
    """Coefficients [K, F] of K logistic regressions that count items differently, by Newton's method with step halving.
    All but the first feature, the constant, are drawn to 0 by `RIDGE`."""
    n_fits, n_features = len(weight_KN), x_NF.shape[1]
    penalty_F = np.full(n_features, RIDGE)
    penalty_F[0] = 1e-9
    coefficient_KF = np.zeros((n_fits, n_features))
    value_K = _objective(coefficient_KF, x_NF, right_N, weight_KN, penalty_F)
    for _ in range(_STEPS):
        chance_KN = 1 / (1 + np.exp(-np.clip(coefficient_KF @ x_NF.T, -500, 500)))
        gradient_KF = (weight_KN * (chance_KN - right_N)) @ x_NF + penalty_F * coefficient_KF
        curve_KN = weight_KN * chance_KN * (1 - chance_KN)
        hessian_KFF = np.stack([(x_NF * curve_N[:, None]).T @ x_NF for curve_N in curve_KN])
        hessian_KFF += np.diag(penalty_F)
        step_KF = np.linalg.solve(hessian_KFF, gradient_KF[..., None])[..., 0]
        size_K = np.ones(n_fits)
        for _ in range(30):
            tried_KF = coefficient_KF - size_K[:, None] * step_KF
            tried_K = _objective(tried_KF, x_NF, right_N, weight_KN, penalty_F)
            worse_K = tried_K > value_K + 1e-9 * np.abs(value_K)
            if not worse_K.any():
                break
            size_K = np.where(worse_K, size_K / 2, size_K)
        coefficient_KF, value_K = tried_KF, tried_K
        if np.max(np.abs(step_KF)) < _CLOSE:
            break
    return coefficient_KF


def bends(values: Sequence[float] | np.ndarray, n: int = 4) -> np.ndarray:
    """A number as features [N, 1 + bends] in which a linear model is a curve: the number itself, and what it has above
    each of n quantiles of it. Quantiles that are alike count once."""
    value_N = np.asarray(values, np.float64)
    cuts = np.unique(np.quantile(value_N, np.arange(1, n + 1) / (n + 1)))
    cuts = cuts[(cuts > value_N.min()) & (cuts < value_N.max())]
    return np.concatenate([value_N[:, None], np.maximum(value_N[:, None] - cuts, 0)], axis=1)


def _objective(
    coefficient_KF: np.ndarray,
    x_NF: np.ndarray,
    right_N: np.ndarray,
    weight_KN: np.ndarray,
    penalty_F: np.ndarray,
) -> np.ndarray:
    logit_KN = coefficient_KF @ x_NF.T
    loss_KN = np.logaddexp(0, logit_KN) - right_N * logit_KN
    return np.einsum("KN,KN->K", weight_KN, loss_KN) + (penalty_F * coefficient_KF**2).sum(axis=1) / 2


def _standardised(name: str, x: np.ndarray, n: int) -> np.ndarray:
    """[N, F] with mean 0 and standard deviation 1; a feature that is the same everywhere is left out."""
    x_NF = x.reshape(len(x), -1)
    if len(x_NF) != n or not np.isfinite(x_NF).all():
        raise ValueError(f"features {name!r}: expected {n} rows of finite numbers; leave out items without")
    spread_F = x_NF.std(axis=0)
    there = spread_F > 1e-12 * np.abs(x_NF).max(axis=0, initial=1e-300)
    return (x_NF[:, there] - x_NF[:, there].mean(axis=0)) / spread_F[there]
