"""One look at a work dir, as a value: what is there, what happens to it, and what a person should know about that.

Pure: what the disk and the plan have said; nothing is read or decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .checkpoint import Durability
from .entry import Identity, LeftAlone, Unreadable
from .memory import Memory, Seen
from .naming import named_by
from .permit import held_back
from .plan import Decision, Plan
from .reason import Reason
from .schedule import Schedule


@dataclass
class Findings:
    """What this process has found out about checkpoints beyond their structure.

    content: what is wrong with it, "" if nothing is. durability: how its last fsync has ended.
    """

    content: dict[Identity, str] = field(default_factory=dict)
    durability: dict[Identity, Durability] = field(default_factory=dict)

    def forget(self, gone: Callable[[str], bool]) -> None:
        """Know nothing any more of those names that are `gone`: what comes back under one may get the same inode."""
        self.content = {each: fault for each, fault in self.content.items() if not gone(each[0])}
        self.durability = {each: known for each, known in self.durability.items() if not gone(each[0])}

    def without_synced(self) -> Findings:
        """The same but for what is on stable storage."""
        return replace(self, durability={each: known for each, known in self.durability.items() if known.failed})

    def written_into(self, memory: Memory) -> Memory:
        """The memory with all of this in it."""

        def known(seen: Seen) -> Seen:
            durability = self.durability.get(seen.bytes_on_disk, seen.durability)
            content = self.content.get(seen.bytes_on_disk, seen.content)
            changed = (durability, content) != (seen.durability, seen.content)
            return replace(seen, durability=durability, content=content) if changed else seen

        return replace(memory, seen={name: known(seen) for name, seen in memory.seen.items()})


@dataclass(frozen=True)
class Survey:
    """One work dir, judged.

    remembered: what earlier passes have left, None if nothing. pointed: the line in the pointer file, if any.
    settles_s: after how many seconds something that is in flight now can have become quiet, if nothing else happens,
    or a run have ended that a changed max_keep waits for. named: what the series are called that runs have declared, or
    that are remembered. links: symlinks and files that name something here.
    """

    plan: Plan
    left_alone: tuple[LeftAlone, ...]
    unreadable: tuple[Unreadable, ...]
    remembered: Memory | None
    pointed: str | None
    declared: dict[str, Schedule]
    advice: tuple[str, ...]
    settles_s: float | None
    named: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    trash_bytes: int = 0  # what the trash takes on the disk, where somebody has asked

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What happens to each checkpoint, and why."""
        return self.plan.decisions

    @property
    def prune(self) -> tuple[str, ...]:
        """The names that would go, oldest first."""
        return tuple(d.checkpoint.name for d in self.plan.prune)

    @property
    def filling(self) -> frozenset[str]:
        """The directories in flight, of which only events inside them tell."""
        found = (d.checkpoint for d in self.plan.decisions)
        known = (c.name for c in found if c.entry.is_dir and not c.state.settled)
        return frozenset((*known, *(each.name for each in self.left_alone if each.filling)))

    @property
    def unread(self) -> frozenset[str]:
        """The names whose content is to be read before anything relies on it."""
        return frozenset(d.checkpoint.name for d in self.plan.decisions if d.checkpoint.content.is_to_be_read)

    @property
    def held_back(self) -> Mapping[str, Reason]:
        """Of what would go, by name: why no pass could do it yet. Known without trying, so from passes before."""
        pointed = self.pointed_name
        is_there = any(each.name == pointed for each in self.left_alone)
        return held_back(self.plan, met=self.remembered, pointed=pointed, is_there=is_there)

    @property
    def pointed_name(self) -> str | None:
        """The checkpoint that the pointer names: the last part of its path, so that a moved run finds it too."""
        if not self.pointed:
            return None
        name = named_by(self.pointed)
        groups = (d.checkpoint for each in self.plan.series if each.grid.template.is_group for d in each.decisions)
        return next((c.name for c in groups if any(part.name == name for part in c.entry.parts)), name)

    @property
    def newest(self) -> str | None:
        """The name of the newest complete checkpoint by writing, over all series."""
        return self.plan.newest.name if self.plan.newest else None
