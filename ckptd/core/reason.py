"""Why a checkpoint is kept, pruned or held back: a kind that a program can ask for, and a text that a person can read.

Pure.
"""

from __future__ import annotations

from enum import Enum


class Kind(str, Enum):
    """What has decided. The values are part of the JSON."""

    # protections
    NEWEST = "newest"  # of the K newest complete ones
    IN_FLIGHT = "in_flight"
    IN_DOUBT = "in_doubt"  # not all of it is of one save, or can be looked at
    IN_USE = "in_use"
    PINNED = "pinned"
    POINTER = "pointer"  # named by our pointer, or by a framework's own
    TRACKER = "tracker"  # named by a small file of somebody else's
    LINK = "link"
    MOUNT = "mount"
    # keepers
    MILESTONE = "milestone"
    BEST = "best"
    UNSCORED = "unscored"  # its score may still come
    WITHIN = "within"
    # the rule, and what it leaves
    RULE = "rule"  # past K
    BROKEN = "broken"  # incomplete, or an fsync of it has failed
    NO_RULE = "no_rule"  # nobody has said how many to keep
    ORDER_IN_DOUBT = "order_in_doubt"  # nobody knows which was written last
    BROUGHT_BACK = "brought_back"
    AHEAD = "ahead"  # above the step that a resumed run has reached
    UNREACHED = "unreached"  # by the stepped rule
    # the budget
    BUDGET = "budget"
    # of what is to be pruned and may not go yet
    WAITS = "waits"  # for what it relies on

    @property
    def protects(self) -> bool:
        """Whether no policy can overrule it: what would be pruned is skipped."""
        return self in _PROTECTIONS


_PROTECTIONS = frozenset(
    {Kind.NEWEST, Kind.IN_FLIGHT, Kind.IN_DOUBT, Kind.IN_USE, Kind.PINNED, Kind.POINTER, Kind.TRACKER, Kind.LINK,
     Kind.MOUNT}
)  # fmt: skip


class Reason(str):
    """The text, with its kind; whoever only prints it need not know that it has one."""

    __slots__ = ("kind",)
    kind: Kind

    def __new__(cls, kind: Kind, text: str) -> Reason:
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason

    def __getnewargs__(self) -> tuple[Kind, str]:  # type: ignore[override]
        return self.kind, str(self)
