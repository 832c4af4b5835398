"""What a prediction says of itself, in words: the signals of its worst class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WEAK: Final = 0.6  # a signal whose good end is 1 speaks against the mask below this,
DOUBTFUL: Final = 0.8  # one of entropy from this on, in bits

_GOOD_AT_ONE: Final = {
    "soft_dice_confidence": ("confidence", "the pixels are unsure"),
    "stability": ("stability", "the mask changes with the cut"),
    "edge_agreement": ("edge agreement", "the edge head sees another outline"),
    "flip_agreement": ("flip agreement", "flipped views differ"),
    "learned_iou": ("quality head", "the quality head expects little"),
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
        signals: of that class; none of an empty mask but how near one is.
    """

    usable: bool
    kind: str | None
    shape: str
    signals: list[Signal]

    @property
    def doubts(self) -> list[str]:
        """What speaks against the mask, the gravest first."""
        weak = [signal for signal in self.signals if signal.weak is not None]
        return [s.weak for s in sorted(weak, key=lambda s: 1 - s.value if s.unit else s.value) if s.weak]


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
    share = float(worst.get("foreground_share", 0.0))
    told = [
        Signal(name, float(worst[key]), "", weak if worst[key] < WEAK else None)
        for key, (name, weak) in _GOOD_AT_ONE.items()
        if worst.get(key) is not None
    ]
    if (doubt := worst.get("boundary_entropy")) is not None:
        weak = "the outline is doubtful" if doubt >= DOUBTFUL else None
        told.insert(0, Signal("outline entropy", float(doubt), "bit", weak))
    return SignalWords(usable, kind, f"covers {_share(share)} of the image", told)


def _share(share: float) -> str:
    return "less than 0.1 %" if share < 0.001 else f"{100 * share:.2g} %" if share < 0.995 else "all"
