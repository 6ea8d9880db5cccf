"""The retention policy: what an operator asked for, and the rules that decide which of a series go.

Pure. Rules unite with keepers and protections in plan.py; none of them can force a deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Union

from ..errors import UsageError
from .finder import Finder
from .layouts import DEFAULT_LAYOUTS, DEFAULT_TEMPLATES, LAYOUTS, layouts_called
from .naming import Names, Template

RULES = ("auto", "stepped", "newest")
VERIFY = ("full", "structure")


@dataclass(frozen=True)
class Stepped:
    """mmcv 1.x's rule: after the save of step s, walk down from s - K*I by I, until one is missing.

    Source: the CheckpointHook of mmcv 1.1.6 to 1.7.2, as recorded in the golden cases. The walk has no length
    limit: a K that has shrunk takes the whole tail at once. A hole stops it, and step 0 is never reached.
    """

    max_keep: int
    interval: int

    name = "stepped"

    def walk(self, step: int, there: Callable[[int], bool]) -> Iterator[int]:
        """The steps that go, newest first, once `step` is saved; `there` tells whether a step is present."""
        step -= self.max_keep * self.interval
        while step > 0 and there(step):
            yield step
            step -= self.interval


@dataclass(frozen=True)
class Newest:
    """Keep the K newest by writing, and whatever lies above the newest's step: a resumed run reaches it."""

    max_keep: int

    name = "newest"


Rule = Union[Stepped, Newest]


@dataclass(frozen=True)
class Policy:
    """What to keep of each series of a work dir. Every part is optional; with no `max_keep` nothing is pruned.

    max_keep: how many of each series to keep, at least 1.
    interval: steps between two saves, at least 1; None: as the run declares, else inferred.
    rule: "auto", "stepped" or "newest"; auto is stepped wherever a grid is known, as DESIGN section 3 says.
    templates: names to look for instead of the default ones, such as ("model-{:04d}.ckpt",).
    layouts: frameworks whose checkpoints to look for instead of the default ones, such as ("deepspeed",).
    settle_s: seconds without a change after which a file counts as quiet; None: by file system.
    trash_ttl_s: seconds for which pruned checkpoints can be restored; None: at once, an hour for a large prune.
    pointer: name of the pointer file.
    verify: "full": contents are read once before anything relies on them; "structure": they are not.

    Raises UsageError for what can never be meant.
    """

    max_keep: int | None = None
    interval: int | None = None
    rule: str = "auto"
    templates: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    settle_s: float | None = None
    trash_ttl_s: float | None = None
    pointer: str = "last_ckpt"
    verify: str = "full"

    def __post_init__(self) -> None:
        texts = (self.templates,) if isinstance(self.templates, str) else tuple(self.templates or ())
        object.__setattr__(self, "templates", tuple(dict.fromkeys(Template(text).text for text in texts)))
        layouts = (self.layouts,) if isinstance(self.layouts, str) else tuple(self.layouts or ())
        object.__setattr__(self, "layouts", tuple(layout.name for layout in layouts_called(layouts)))
        _at_least_1("max_keep", self.max_keep, "a rule that keeps nothing is a mistake")
        _at_least_1("interval", self.interval, "it is the number of steps between two saves")
        if self.rule not in RULES:
            raise UsageError(f"rule {self.rule!r}: choose one of {', '.join(RULES)}")
        if self.verify not in VERIFY:
            raise UsageError(f"verify {self.verify!r}: choose one of {', '.join(VERIFY)}")
        for name in ("settle_s", "trash_ttl_s"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds >= 0:
                raise UsageError(f"{name} is {seconds}: a duration is 0 or more seconds")
        if not _plain_name(self.pointer):
            raise UsageError(f"pointer {self.pointer!r}: give a plain file name, such as last_ckpt")
        found = self.finder().match(self.pointer)
        if found is not None and not found[0].alone:
            raise UsageError(
                f"pointer {self.pointer!r} is a checkpoint's name in {found[0].names.text!r}: choose another"
            )

    @property
    def patterns(self) -> tuple[Template, ...]:
        """The templates to look for; the first that a name belongs to has it."""
        return tuple(Template(text) for text in self.templates) or DEFAULT_TEMPLATES

    def finder(self, more: Iterable[Names] = (), remembered: Iterable[Names] = ()) -> Finder:
        """What finds the checkpoints that this policy is about.

        more, remembered: what else is looked for where the policy itself names neither templates nor layouts.
        """
        if self.templates or self.layouts:
            return Finder(map(Template, self.templates), layouts_called(self.layouts), asked=True)
        others = (layout for layout in LAYOUTS if not layout.by_itself)
        return Finder(more, DEFAULT_LAYOUTS, remembered=remembered, others=others)

    def rule_for(self, template: Names, interval: int | None, *, max_keep: int | None, on_grid: bool) -> Rule | None:
        """The rule of one series, or None where nothing is pruned.

        `interval` is the one in force, `on_grid` whether somebody gave or declared it; `max_keep` the declared one,
        which counts where the policy has none. With no interval there is no grid to step on, so `newest` applies.
        """
        keep = self.max_keep if self.max_keep is not None else max_keep
        if keep is None:
            return None
        if self.rule == "newest" or interval is None or not template.has_grid:
            return Newest(keep)
        if self.rule == "stepped" or on_grid or self._steps_by_itself(template):
            return Stepped(keep, interval)
        return Newest(keep)

    def _steps_by_itself(self, template: Names) -> bool:
        """Whether it is named as mmcv's hook names, whose rule it is, and not as a framework that was asked for."""
        if template.unit not in ("epoch", "iter"):
            return False
        asked = [layout for layout in layouts_called(self.layouts) if layout.name not in ("mmcv", "mmengine")]
        return not any(form.text == template.text for layout in asked for form in layout.forms)


def _at_least_1(name: str, value: int | None, why: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}: give a whole number")
    if value < 1:
        raise UsageError(f"{name} is {value}: it must be at least 1: {why}")


def _plain_name(name: str) -> bool:
    return (
        bool(name) and not name.startswith(".") and "/" not in name and name.isprintable() and len(name.encode()) <= 200
    )
