"""What a prediction says of itself, in words: the signals of its worst class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WEAK: Final = 0.6  # a signal whose good end is 1 speaks against the mask below this,
DOUBTFUL: Final = 0.8  # one of entropy from this on, in bits

_TOLD: Final = {  # name, unit, what a weak one says; those that rank masks best first
    "learned_iou": ("quality head", "", "the quality head expects little"),
    "stability": ("stability", "", "the mask changes with the cut"),
    "soft_dice_confidence": ("confidence", "", "the pixels are unsure"),
    "flip_agreement": ("flip agreement", "", "flipped views differ"),
    "boundary_entropy": ("outline entropy", "bit", "the outline is doubtful"),
    "edge_agreement": ("edge agreement", "", "the edge head sees another outline"),
}


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of a mask, from 0 to 1.

    Attributes:
        name: for people.
        value: entropies in bits.
        unit: of the value; "" for none.
        weak: what it says against the mask, in words; None: nothing.
    """

    name: str
    value: float
    unit: str
    weak: str | None


@dataclass(frozen=True, slots=True)
class SignalWords:
    """What a prediction says of itself.

    Attributes:
        usable: False: the model gave no finite probabilities, and nothing else counts.
        kind: the class that decides, where there are several.
        shape: how much of the image the mask covers, in words.
        signals: of that class, what tells most first; of an empty mask only how near another is.
    """

    usable: bool
    kind: str | None
    shape: str
    signals: list[Signal]

    @property
    def doubts(self) -> list[str]:
        """What speaks against the mask."""
        return [signal.weak for signal in self.signals if signal.weak is not None]


def in_words(measured: Mapping[str, Any], classes: Sequence[str]) -> SignalWords | None:
    """Of a prediction's signals, as `active_learning.signals.Signals.to_dict` has them.

    Args:
        measured: the signals; those of earlier releases may lack some.
        classes: the project's, in its order.

    Returns:
        None where nothing was measured.
    """
    found = measured.get("classes")
    if not found:
        return None
    number = min(range(len(found)), key=lambda i: found[i].get("score", 0.0))
    worst = found[number]
    kind = classes[number] if len(found) > 1 and number < len(classes) else None
    usable = bool(measured.get("usable"))
    if worst.get("empty"):
        peak = float(worst.get("peak", 0.0))
        near = "something may have been missed" if 1 - peak < WEAK else None
        return SignalWords(usable, kind, "nothing found", [Signal("likeliest pixels", peak, "", near)])
    told = [
        Signal(name, float(worst[key]), unit, weak if _is_weak(worst[key], unit) else None)
        for key, (name, unit, weak) in _TOLD.items()
        if worst.get(key) is not None
    ]
    share = float(worst.get("foreground_share", 0.0))
    return SignalWords(usable, kind, f"covers {_share(share)} of the image", told)


def _is_weak(value: float, unit: str) -> bool:
    return value >= DOUBTFUL if unit else value < WEAK


def _share(share: float) -> str:
    return "less than 0.1 %" if share < 0.001 else f"{100 * share:.2g} %" if share < 0.995 else "all"
