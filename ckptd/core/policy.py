"""The retention policy: what an operator asked for, and the rules that decide which of a series go.

Pure. Rules unite with keepers and protections in plan.py; none of them can force a deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Union

from ..errors import UsageError
from .budget import Floor
from .finder import Finder
from .keepers import KeepBest, Keeper, KeepEvery, KeepWithin, at_least_1
from .keyed import given
from .layouts import DEFAULT_LAYOUTS, DEFAULT_TEMPLATES, LAYOUTS, layouts_called
from .naming import PIN_ENDING, SIDECAR_ENDING, TIME, Family, Names, joined

RULES = ("auto", "stepped", "newest")
VERIFY = ("full", "structure")
NO_POINTER = "none"  # among the checkpoints

NameTest = Callable[[str, bool], bool]


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
    rule: "auto", "stepped" or "newest"; auto is stepped for epoch_N and iter_N once the interval is known, and for
    other names if it is given or declared; else newest.
    templates: names to look for instead of the default ones, such as ("model-{:04d}.ckpt",).
    layouts: frameworks whose checkpoints to look for instead of the default ones, such as ("deepspeed",).
    settle_s: seconds without a change after which a file counts as quiet; None: by file system.
    trash_ttl_s: seconds for which pruned checkpoints can be restored; None: at once, an hour for a large prune.
    pointer: name of the pointer file; "none" for none among the checkpoints; an absolute path for one elsewhere.
    verify: "full": contents are read once before anything relies on them; "structure": they are not.
    keep_every: steps divisible by it stay. keep_best: the best by a metric stay, as KeepBest or "METRIC:max:K".
    keep_within_s: what was written within so many seconds before the newest stays.
    max_bytes: what all checkpoints of a work dir and its trash may take on the disk; the oldest go until that holds,
    also without a max_keep, but never one that the newest, a keeper or a protection keeps.
    min_free: what is to stay free on its file system, as a number of bytes or as "10%"; while there is less, the oldest
    go as for max_bytes.

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
    keep_every: int | None = None
    keep_best: tuple[KeepBest, ...] = ()
    keep_within_s: float | None = None
    max_bytes: int | None = None
    min_free: Floor | None = None

    def __post_init__(self) -> None:
        texts = (self.templates,) if isinstance(self.templates, str) else tuple(self.templates or ())
        object.__setattr__(self, "templates", tuple(dict.fromkeys(given(text).text for text in texts)))
        _refuse_named_twice(self.templates)
        layouts = (self.layouts,) if isinstance(self.layouts, str) else tuple(self.layouts or ())
        object.__setattr__(self, "layouts", tuple(layout.name for layout in layouts_called(layouts)))
        at_least_1("max_keep", self.max_keep, "a rule that keeps nothing is a mistake")
        at_least_1("interval", self.interval, "it is the number of steps between two saves")
        at_least_1("max_bytes", self.max_bytes, "the newest checkpoint stays whatever it says")
        for names in map(given, self.templates if self.keep_every is not None else ()):
            if names.unit == TIME:
                raise UsageError(f"keep_every {self.keep_every}: the step of {names.text!r} is a time, and none is a "
                                 "milestone; keep_within keeps what is recent")  # fmt: skip
        self._read_keep_best()
        self._read_min_free()
        _ = self.keepers  # each is checked where it is born
        if self.rule not in RULES:
            raise UsageError(f"rule {self.rule!r}: choose one of {', '.join(RULES)}")
        if self.verify not in VERIFY:
            raise UsageError(f"verify {self.verify!r}: choose one of {', '.join(VERIFY)}")
        for name in ("settle_s", "trash_ttl_s"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds >= 0:
                raise UsageError(f"{name} is {seconds}: a duration is 0 or more seconds")
        if self.pointer.lower() == NO_POINTER:
            object.__setattr__(self, "pointer", NO_POINTER)
        name = self.pointer.rpartition("/")[2]
        elsewhere = self.pointer.startswith("/") and self.pointer.isprintable()
        if not (_plain_name(self.pointer) or (elsewhere and _plain_name(name))):
            raise UsageError(
                f"pointer {self.pointer!r}: give a plain file name, such as last_ckpt, an absolute path, or none"
            )
        if name.endswith((PIN_ENDING, SIDECAR_ENDING)):
            raise UsageError(f"pointer {self.pointer!r}: what is called so pins a checkpoint, or has its scores")
        found = self.finder().match(name)
        if found is not None and not found[0].alone:
            raise UsageError(
                f"pointer {self.pointer!r} is a checkpoint's name in {found[0].names.text!r}: choose another"
            )

    @property
    def has_budget(self) -> bool:
        """Whether something can go for want of room, whatever the rule says."""
        return self.max_bytes is not None or self.min_free is not None

    @property
    def keepers(self) -> tuple[Keeper, ...]:
        """What stays although the rule would let it go."""
        every = (KeepEvery(self.keep_every),) if self.keep_every is not None else ()
        within = (KeepWithin(self.keep_within_s),) if self.keep_within_s is not None else ()
        return (*every, *self.keep_best, *within)

    def keepers_of(self, names: Names) -> tuple[Keeper, ...]:
        """Those that can say anything of a series: of dates no step is a milestone."""
        return tuple(each for each in self.keepers if names.unit != TIME or not isinstance(each, KeepEvery))

    @property
    def patterns(self) -> tuple[Names, ...]:
        """The series to look for, as far as they are known before a look."""
        asked = [names for names in map(given, self.templates) if not isinstance(names, Family)]
        return tuple(asked) if self.templates else DEFAULT_TEMPLATES

    @property
    def families(self) -> tuple[Family, ...]:
        """The templates of which a part tells series apart."""
        return tuple(names for names in map(given, self.templates) if isinstance(names, Family))

    def _read_keep_best(self) -> None:
        given = (self.keep_best,) if isinstance(self.keep_best, (str, KeepBest)) else tuple(self.keep_best or ())
        best = tuple(dict.fromkeys(KeepBest.from_text(each) if isinstance(each, str) else each for each in given))
        metrics = [each.metric for each in best]
        for metric in metrics:
            if metrics.count(metric) > 1:
                raise UsageError(f"keep_best names {metric} twice: give one direction and one number for it")
        object.__setattr__(self, "keep_best", best)

    def _read_min_free(self) -> None:
        given: object = self.min_free
        if given is not None and not isinstance(given, Floor):
            object.__setattr__(self, "min_free", Floor.from_text(str(given)))

    def finder(self, more: Iterable[Names] = (), remembered: Iterable[Names] = ()) -> Finder:
        """What finds the checkpoints that this policy is about.

        more, remembered: what else is looked for where the policy itself names neither templates nor layouts.
        """
        if self.templates or self.layouts:
            return Finder(map(given, self.templates), layouts_called(self.layouts), asked=True)
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


def _refuse_named_twice(templates: Iterable[str]) -> None:
    """Raise UsageError where a file would be a checkpoint by itself, and a part of another."""
    pieces = [piece for template in templates for piece in joined(template)]
    for piece in pieces:
        if pieces.count(piece) > 1:
            raise UsageError(f"template {piece!r} is named twice: alone, or as a part of several groups")


def _plain_name(name: str) -> bool:
    return (
        bool(name) and not name.startswith(".") and "/" not in name and name.isprintable() and len(name.encode()) <= 200
    )


def name_test(policy: Policy) -> NameTest:
    """Tells of a name, and whether a directory bears it, if it can belong to a checkpoint: the one place that knows."""
    asked = bool(policy.templates or policy.layouts)
    # Without the layouts that are only listed and left alone: what is never pruned makes no work dir.
    finder = policy.finder() if asked else Finder((), DEFAULT_LAYOUTS)

    def is_checkpoint(name: str, is_dir: bool) -> bool:
        found = finder.match(name)
        return found is not None and (found[0].directories if is_dir else found[0].files)

    return is_checkpoint
