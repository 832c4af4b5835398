"""Maps from what a prediction says of itself to the IoU to expect of it, fitted on audits.

Three of them, the simpler one as long as there are few audits: the identity; isotonic regression on the
score; ridge regression on all signals, where cross-validation over scenes shows it to be nearer. A mask
without signals to regress on (an empty one) is always graded by its score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import ELNetError

DIGITS = 9  # of a score; knots that lie closer would make a slope that overflows
MIN_SAMPLES = 20  # audited predictions below which no map is fitted
MIN_REGRESSION = 60  # audited predictions with signals below which these are not regressed on
FOLDS = 5
_ROOM = 0.25  # beyond the range that a signal had in the audits, as a share of it
_PENALTIES = tuple(np.logspace(-1, 3, 9).tolist())

Kind = Literal["identity", "isotonic", "ridge"]
Features = Sequence[Sequence[float | None] | None]  # None for a signal: it was not measured


class QualityError(ELNetError):
    """A calibration that cannot be fitted or read."""


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A map from score, or signals, to predicted IoU in [0, 1].

    The map of the score never falls. Between its knots it is linear; above the last knot it stays flat; below
    the first it falls in a straight line to (0, 0): what is not known must not look good. The map of the
    signals is linear in them, each held near the range that it had in the audits; one that was not measured
    counts as it did in them on average.

    Attributes:
        kind: "identity", "isotonic" (regression by pool-adjacent-violators) or "ridge".
        samples: how many audited predictions it was fitted on, or how many there were when too few.
        knots: scores, ascending; empty for the identity.
        values: predicted IoU at the knots, never falling.
        weights: of each signal, of kind "ridge"; `intercept` beside them.
        ranges: lowest and highest value that each signal may have.
        means: of each signal in the audits.
    """

    kind: Kind = "identity"
    samples: int = 0
    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    intercept: float = 0.0
    ranges: tuple[tuple[float, float], ...] = ()
    means: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls,
        scores: Sequence[float],
        ious: Sequence[float],
        groups: Sequence[Hashable] | None = None,
        features: Features | None = None,
    ) -> Calibrator:
        """Fit on audited predictions.

        Args:
            scores: scores of the predictions that the labels began with, in [0, 1].
            ious: their IoU against the labels, in [0, 1].
            groups: the scene of each; the samples of one scene weigh together as one, since siblings say
                the same thing several times. None: every sample weighs the same.
            features: the signals of each, see `active_learning.signals.features`; None for one without.

        Returns:
            The identity when there are fewer than `MIN_SAMPLES`; else an isotonic map, or a ridge regression
            where that is nearer to the IoUs of scenes that it was not fitted on.

        Raises:
            QualityError: lengths differ or a value is not in [0, 1].
        """
        samples = _Samples.of(scores, ious, groups, features)
        return _fit(samples, _choose(samples))

    def predict(self, scores: ArrayLike, features: Features | None = None) -> NDArray[np.float64]:
        """Predicted IoU of predictions; the shape of `scores`, in [0, 1]. What is not finite becomes 0."""
        x = np.clip(np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.0), 0, 1)
        if self.kind == "identity":
            return x
        knots, values = list(self.knots), list(self.values)
        if knots[0] > 0:
            knots, values = [0.0, *knots], [0.0, *values]
        found = np.clip(np.interp(x, knots, values), 0, 1)
        if self.kind != "ridge" or features is None:
            return found
        (low, high), means = np.array(self.ranges).T, np.array(self.means)
        told = np.array([_is_sound(signals) for signals in features], np.bool_)
        signals = _table(features, len(self.weights))[told]
        known = np.clip(np.where(np.isnan(signals), means, signals), low, high)
        found[told] = np.clip(self.intercept + known @ np.array(self.weights), 0, 1)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The parameters as JSON numbers, for `Calibration.parameters`."""
        told: dict[str, Any] = {"knots": list(self.knots), "values": list(self.values)}
        if self.kind == "ridge":
            told |= {"weights": list(self.weights), "intercept": self.intercept}
            told["ranges"] = [list(pair) for pair in self.ranges]
            told["means"] = list(self.means)
        return told

    @classmethod
    def from_dict(cls, kind: str, samples: int, parameters: Mapping[str, Any]) -> Calibrator:
        """Undo `to_dict`.

        Raises:
            QualityError: the parameters are no map within [0, 1].
        """
        if kind == "identity":
            return cls(samples=samples)
        try:
            x = np.asarray(parameters["knots"], dtype=np.float64)
            y = np.asarray(parameters["values"], dtype=np.float64)
            weights = np.asarray(parameters.get("weights", []), dtype=np.float64)
            ranges = np.asarray(parameters.get("ranges", []), dtype=np.float64).reshape(-1, 2)
            means = np.asarray(parameters.get("means", ranges.mean(axis=1)), dtype=np.float64)
            intercept = float(parameters.get("intercept", 0.0))
        except (KeyError, TypeError, ValueError) as error:
            raise QualityError(f"the stored calibration cannot be read ({error}); recalibrate") from error
        monotone = x.shape == y.shape and x.ndim == 1 and x.size and (np.diff(x) >= 0).all()
        if not monotone or (np.diff(y) < 0).any() or not (_in_unit(x) and _in_unit(y)):
            raise QualityError(f"the stored calibration ({kind!r}) is no monotone map in [0, 1]; recalibrate")
        found = cls(samples=samples, knots=tuple(x.tolist()), values=tuple(y.tolist()))
        if kind == "isotonic":
            return replace(found, kind="isotonic")
        numbers = np.concatenate([weights, ranges.ravel(), means, [intercept]])
        if (
            kind != "ridge"
            or not len(weights) == len(ranges) == len(means) > 0
            or not np.isfinite(numbers).all()
        ):
            raise QualityError(f"the stored calibration ({kind!r}) is no regression; recalibrate")
        return replace(
            found,
            kind="ridge",
            weights=tuple(weights.tolist()),
            intercept=intercept,
            ranges=tuple((low, high) for low, high in ranges.tolist()),
            means=tuple(means.tolist()),
        )


def cross_fitted(
    scores: Sequence[float],
    ious: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    features: Features | None = None,
) -> NDArray[np.float64]:
    """The predicted IoU of each audited prediction by a map that was not fitted on its scene.

    Of the kind that `Calibrator.fit` chooses on all of them. A threshold that is tested on the audits
    themselves needs it: a map that has seen them grades them too well.

    Returns:
        (n,) in [0, 1].

    Raises:
        QualityError: as `Calibrator.fit`.
    """
    samples = _Samples.of(scores, ious, groups, features)
    return _out_of_fold(samples, _choose(samples))


@dataclass(frozen=True, slots=True)
class _Samples:
    scores: NDArray[np.float64]
    ious: NDArray[np.float64]
    groups: NDArray[np.int64]
    features: list[Sequence[float | None] | None]

    @classmethod
    def of(
        cls,
        scores: Sequence[float],
        ious: Sequence[float],
        groups: Sequence[Hashable] | None,
        features: Features | None,
    ) -> _Samples:
        named = list(range(len(scores)) if groups is None else groups)
        told: Features = [None] * len(scores) if features is None else features
        if not len(scores) == len(ious) == len(named) == len(told):
            raise QualityError(
                f"{len(scores)} scores, {len(ious)} IoUs and {len(named)} groups do not pair up"
            )
        x, y = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
        if not (_in_unit(x) and _in_unit(y)):
            raise QualityError("a score or an IoU to calibrate on is not in [0, 1]")
        numbers = {name: i for i, name in enumerate(dict.fromkeys(named))}
        sound = [f if _is_sound(f) else None for f in told]
        return cls(np.round(x, DIGITS), y, np.array([numbers[name] for name in named], np.int64), sound)

    def take(self, which: NDArray[np.bool_]) -> _Samples:
        kept = [f for f, chosen in zip(self.features, which, strict=True) if chosen]
        return _Samples(self.scores[which], self.ious[which], self.groups[which], kept)

    @property
    def weights(self) -> NDArray[np.float64]:
        sizes = Counter(self.groups.tolist())
        return np.array([1 / sizes[group] for group in self.groups.tolist()])

    @property
    def told(self) -> NDArray[np.bool_]:
        return np.array([f is not None for f in self.features], np.bool_)


def _choose(samples: _Samples) -> Kind:
    """The kind of map: the simplest that so many audits allow, unless a richer one proves to be nearer."""
    if len(samples.scores) < MIN_SAMPLES:
        return "identity"
    told = samples.told
    if told.sum() < MIN_REGRESSION or len(set(samples.groups[told].tolist())) < 2 * FOLDS:
        return "isotonic"
    errors = {
        kind: np.abs(_out_of_fold(samples, kind) - samples.ious)[told].mean()
        for kind in ("isotonic", "ridge")
    }
    return "ridge" if errors["ridge"] < errors["isotonic"] else "isotonic"


def _out_of_fold(samples: _Samples, kind: Kind) -> NDArray[np.float64]:
    if kind == "identity" or len(set(samples.groups.tolist())) < 2:
        return _fit(samples, kind).predict(samples.scores, samples.features)
    mixed = np.random.default_rng(0).permutation(int(samples.groups.max()) + 1)
    folds = mixed[samples.groups] % min(FOLDS, len(set(samples.groups.tolist())))
    found = np.zeros(len(samples.scores))
    for fold in np.unique(folds):
        test = samples.take(folds == fold)
        found[folds == fold] = _fit(samples.take(folds != fold), kind).predict(test.scores, test.features)
    return found


def _fit(samples: _Samples, kind: Kind) -> Calibrator:
    if kind == "identity":
        return Calibrator(samples=len(samples.scores))
    # Imported here because it takes a second, and most commands never fit.
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
        samples.scores, samples.ious, sample_weight=samples.weights
    )
    values = np.maximum.accumulate(np.clip(fitted.y_thresholds_, 0, 1))  # a rounding may fall
    found = Calibrator(
        "isotonic", len(samples.scores), tuple(fitted.X_thresholds_.tolist()), tuple(values.tolist())
    )
    return found if kind == "isotonic" else _regress(found, samples.take(samples.told))


def _regress(isotonic: Calibrator, samples: _Samples) -> Calibrator:
    from sklearn.linear_model import RidgeCV

    x = _table(samples.features, max(len(f) for f in samples.features if f is not None))
    x[:, np.isnan(x).all(axis=0)] = 0  # never measured: the same everywhere, and its weight is 0
    mean, low, high = np.nanmean(x, axis=0), np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    x = np.where(np.isnan(x), mean, x)
    scale = x.std(axis=0)
    room = _ROOM * (high - low)
    scale[scale < 1e-9] = 1
    fitted = RidgeCV(_PENALTIES).fit((x - mean) / scale, samples.ious, sample_weight=samples.weights)
    weights = fitted.coef_ / scale
    return replace(
        isotonic,
        kind="ridge",
        weights=tuple(weights.tolist()),
        intercept=float(fitted.intercept_ - mean @ weights),
        ranges=tuple(zip((low - room).tolist(), (high + room).tolist(), strict=True)),
        means=tuple(mean.tolist()),
    )


def _table(features: Features, width: int) -> NDArray[np.float64]:
    """(n, width) signals, NaN for what was not measured.

    A list that is shorter was stored before the last signals came to be, and a longer one after.
    """
    table = np.full((len(features), width), np.nan)
    for row, signals in zip(table, features, strict=True):
        known = list(signals or ())[:width]
        row[: len(known)] = known
    return table


def _is_sound(signals: Sequence[float | None] | None) -> bool:
    return signals is not None and all(value is None or math.isfinite(value) for value in signals)


def _in_unit(values: NDArray[np.float64]) -> bool:
    """All finite and in [0, 1]."""
    return bool((np.isfinite(values) & (values >= 0) & (values <= 1)).all())
