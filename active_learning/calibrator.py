"""A monotone map from score to predicted IoU: the identity, or isotonic regression on audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import ELNetError

DIGITS = 9  # of a score; knots that lie closer would make a slope that overflows
MIN_SAMPLES = 20  # audited predictions below which no map is fitted


class QualityError(ELNetError):
    """A calibration that cannot be fitted or read."""


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A monotone map from score to predicted IoU, both in [0, 1].

    Between its knots it is linear. Above the last knot it stays flat. Below the first it falls in a straight
    line to (0, 0): audits are drawn from what would be accepted, so nothing is known of low scores, and what
    is not known must not look good.

    Attributes:
        kind: "identity", or "isotonic" (regression by pool-adjacent-violators).
        samples: how many audited predictions it was fitted on, or how many there were when too few.
        knots: scores, ascending; empty for the identity.
        values: predicted IoU at the knots, never falling.
    """

    kind: Literal["identity", "isotonic"] = "identity"
    samples: int = 0
    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls, scores: Sequence[float], ious: Sequence[float], groups: Sequence[Hashable] | None = None
    ) -> Calibrator:
        """Fit on audited predictions.

        Args:
            scores: scores of the predictions that the labels began with, in [0, 1].
            ious: their IoU against the labels, in [0, 1].
            groups: the scene of each; the samples of one scene weigh together as one, since siblings say
                the same thing several times. None: every sample weighs the same.

        Returns:
            The identity when there are fewer than `MIN_SAMPLES`, else an isotonic map.

        Raises:
            QualityError: lengths differ or a value is not in [0, 1].
        """
        groups = range(len(scores)) if groups is None else groups
        if not len(scores) == len(ious) == len(groups):
            raise QualityError(
                f"{len(scores)} scores, {len(ious)} IoUs and {len(groups)} groups do not pair up"
            )
        x, y = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
        if not (_in_unit(x) and _in_unit(y)):
            raise QualityError("a score or an IoU to calibrate on is not in [0, 1]")
        if len(x) < MIN_SAMPLES:
            return cls(samples=len(x))
        x = np.round(x, DIGITS)
        # Imported here because it takes a second, and most commands never fit.
        from sklearn.isotonic import IsotonicRegression

        sizes = Counter(groups)
        weights = [1 / sizes[group] for group in groups]
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y, sample_weight=weights)
        values = np.maximum.accumulate(np.clip(fitted.y_thresholds_, 0, 1))  # a rounding may fall
        return cls("isotonic", len(x), tuple(fitted.X_thresholds_.tolist()), tuple(values.tolist()))

    def predict(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Predicted IoU of scores; the same shape, in [0, 1]. What is not finite becomes 0."""
        x = np.clip(np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.0), 0, 1)
        if self.kind == "identity":
            return x
        knots, values = list(self.knots), list(self.values)
        if knots[0] > 0:
            knots, values = [0.0, *knots], [0.0, *values]
        return np.clip(np.interp(x, knots, values), 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """The parameters as JSON numbers, for `Calibration.parameters`."""
        return {"knots": list(self.knots), "values": list(self.values)}

    @classmethod
    def from_dict(cls, kind: str, samples: int, parameters: Mapping[str, Any]) -> Calibrator:
        """Undo `to_dict`.

        Raises:
            QualityError: the parameters are no monotone map within [0, 1].
        """
        if kind == "identity":
            return cls(samples=samples)
        try:
            x = np.asarray(parameters["knots"], dtype=np.float64)
            y = np.asarray(parameters["values"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise QualityError(f"the stored calibration cannot be read ({error}); recalibrate") from error
        monotone = x.shape == y.shape and x.ndim == 1 and x.size and (np.diff(x) >= 0).all()
        if kind != "isotonic" or not monotone or (np.diff(y) < 0).any() or not (_in_unit(x) and _in_unit(y)):
            raise QualityError(f"the stored calibration ({kind!r}) is no monotone map in [0, 1]; recalibrate")
        return cls("isotonic", samples, tuple(x.tolist()), tuple(y.tolist()))


def _in_unit(values: NDArray[np.float64]) -> bool:
    """All finite and in [0, 1]."""
    return bool((np.isfinite(values) & (values >= 0) & (values <= 1)).all())
