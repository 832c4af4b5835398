"""The words of the ledger: where things stand, who said so, who may."""

from __future__ import annotations

import enum


class TaskStatus(enum.StrEnum):
    """Where an image stands. Review, accepted, audit and done are the views in the labeling tool."""

    WAITING = "waiting"  # no prediction by the champion yet (or there is no champion yet)
    REVIEW = "review"  # a human must see it
    ACCEPTED = "accepted"  # accepted without a human
    AUDIT = "audit"  # drawn at random, for an audit or the holdout: a human sees it, whatever its quality
    DONE = "done"  # a human labelled it
    SKIPPED = "skipped"  # a human refused to label it
    FAILED = "failed"  # its image cannot be read: `Task.failure` says why; a human must see it
    GONE = "gone"  # deleted in the labeling tool


class CountedAs(enum.StrEnum):
    """Where a version's prediction of an open image would send it, as far as no threshold decides."""

    AUDIT = "audit"  # drawn for the audit or the holdout
    UNUSABLE = "unusable"  # without a usable quality: to a human
    GRADED = "graded"  # the threshold parts these


class LabelSource(enum.StrEnum):
    """Who said so, and why they were asked."""

    HUMAN = "human"  # from the review queue, or unasked
    AUDIT = "audit"  # a random audit: calibrates
    MACHINE = "machine"  # an accepted prediction, never truth


class ModelState(enum.StrEnum):
    """The life of a model version."""

    TRAINED = "trained"
    REJECTED = "rejected"
    CHALLENGER = "challenger"  # better by the gate, and waits for a lead's word
    CHAMPION = "champion"
    RETIRED = "retired"


class CycleState(enum.StrEnum):
    """The life of a retraining cycle."""

    REQUESTED = "requested"
    RUNNING = "running"
    PROMOTED = "promoted"
    PASSED = "passed"  # its challenger waits for a lead's word
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


class InboxState(enum.StrEnum):
    """The life of an event from the labeling tool."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


class Role(enum.StrEnum):
    """What a user of the desk may do; each may do what those before it may."""

    VIEWER = "viewer"  # look
    LEAD = "lead"  # thresholds, policy, cycles, versions
    ADMIN = "admin"  # users

    def includes(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)
