"""Which series are parts of one checkpoint each: those that have the same steps, saved one beside the other.

Pure. As a guess it is advice: it says how a person could name them together, and nothing is pruned by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UsageError
from .guess import Guess
from .keyed import given
from .naming import JOINT, Template

_MOST = 8  # parts; more are of many runs
_FEWEST_STEPS = 2
_WORD, _FIELD = re.compile("[a-z]+"), re.compile(r"\{[^}]*\}")
# What is resumed from comes first, and what only goes with it last.
_FIRST = frozenset({"g", "gen", "generator", "model", "net", "network", "weights", "state", "policy"})
_LAST = frozenset({
    "buffer", "d", "data", "disc", "discriminator", "do", "ema", "meta", "opt", "optim", "optimizer", "pdema", "pdopt",
    "pkl", "replay", "rng", "scheduler", "training", "vecnormalize",
})  # fmt: skip


def joined(found: Iterable[Guess], mtimes_ns: Mapping[str, int]) -> list[Guess]:
    """The series, where those that are parts of one checkpoint are one, with a template for all of its files.

    mtimes_ns: when each of their files was written; two runs side by side have the same steps too.
    """
    left, made = list(found), list[Guess]()
    while left:
        first = left.pop(0)
        partners = [each for each in left if _belong_together(first, each, mtimes_ns)]
        together = _named_together([first, *partners]) if 0 < len(partners) < _MOST else None
        made += [together] if together is not None else [first, *partners]
        left = [each for each in left if each not in partners]
    return made


def joint(templates: Sequence[str]) -> str | None:
    """One template for files that are one checkpoint each; None where none can be."""
    text = JOINT.join(templates)
    try:
        return given(text).text
    except UsageError:
        return None


def _belong_together(one: Guess, other: Guess, mtimes_ns: Mapping[str, int]) -> bool:
    """Whether both have the same steps, but for the newest, which may be being written, and were written in turn."""
    steps, others = _steps_of(one), _steps_of(other)
    common = steps.keys() & others.keys()
    if len(common) < _FEWEST_STEPS or (steps.keys() ^ others.keys()) - {max(*steps, *others)}:
        return False
    try:
        spans = [sorted((mtimes_ns[steps[step]], mtimes_ns[others[step]])) for step in sorted(common)]
    except KeyError:
        return False
    return all(before[1] <= after[0] for before, after in zip(spans, spans[1:]))


def _steps_of(guess: Guess) -> dict[int, str]:
    try:
        template = Template(guess.template)
    except UsageError:
        return {}
    return {step: name for name in guess.names if (step := template.step_of(name)) is not None}


def _named_together(parts: Sequence[Guess]) -> Guess | None:
    """One template for the files of all of them; None where none can be."""
    ordered = sorted(parts, key=lambda part: (_rank(part.template), part.template))
    text = joint([part.template for part in ordered])
    if text is None:
        return None
    return Guess(text, tuple(name for part in ordered for name in part.names), any(part.is_named_so for part in parts))


def _rank(template: str) -> int:
    words = set(_WORD.findall(_FIELD.sub(" ", template.lower())))
    return 2 if words & _LAST else 0 if words & _FIRST else 1
