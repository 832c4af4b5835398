"""What a guarantee says, in sentences that the command line and the desk share."""

from __future__ import annotations

from active_learning.guarantee import Guarantee, Promise
from active_learning.risk import WhatIf


def in_words(answer: Guarantee, asked: Promise, version: str | None, tried: WhatIf) -> list[str]:
    """A guarantee in sentences.

    Args:
        answer: what can be promised.
        asked: what is to hold.
        version: name of the version that serves; None: none does.
        tried: what the answer's threshold would do.
    """
    if version is None:
        return ["No model version serves yet, so there is nothing to accept."]
    audits = f"{answer.samples} audited scene{'' if answer.samples == 1 else 's'} tell of {version}"
    if answer.threshold is not None:
        return [
            f"{audits}. It can be kept from predicted IoU {answer.threshold:.3f} on: {answer.reached} "
            f"audited masks reach that, {answer.failures} of them bad, so of all accepted ones at most "
            f"{answer.risk_bound:.1%} are likely to be.",
            f"That would accept {tried.accepted} of the images that wait now{_saved(tried)}.",
        ]
    lines = [f"{audits}. It cannot be kept yet, so nothing would be accepted."]
    if answer.more is not None:
        lines.append(
            f"About {answer.more} more audits would do, if they turn out as those so far; "
            f"{tried.audit} images wait in the Audit view."
        )
    elif answer.samples:
        lines.append(
            "More audits of this version would not help: of the better half of its masks too many are bad. "
            "Ask for a lower IoU or a higher risk, or train on more labels."
        )
    if answer.best_risk is not None:
        lines.append(
            f"What can be promised today at IoU {asked.iou:g} and confidence {asked.confidence:g} is a risk "
            f"of {answer.best_risk:.2f}."
        )
    return lines


def _saved(tried: WhatIf) -> str:
    if not tried.saved_hours:
        return ""
    return (
        f", and save about {tried.saved_hours:.1f} hours of people's work; the others would take "
        f"{tried.hours:.1f}"
    )
