"""Which series are parts of one checkpoint each: those that have the same steps, saved one beside the other.

Pure. As a guess it is advice: it says how a person could name them together, and nothing is pruned by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import UsageError
from .guess import Guess
from .in_turn import are_in_turn
from .keyed import given
from .naming import JOINT, Template

_MOST = 8  # parts; more are of many runs
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
        written = _written(first, mtimes_ns)
        partners = [each for each in left if are_in_turn(written, _written(each, mtimes_ns), ties=True)]
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


def _written(guess: Guess, mtimes_ns: Mapping[str, int]) -> dict[int, int]:
    """Times of writing by steps, of a series with one number."""
    try:
        template = Template(guess.template)
    except UsageError:
        return {}
    return {step: mtimes_ns[name] for name in guess.names if (step := template.step_of(name)) is not None}


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
