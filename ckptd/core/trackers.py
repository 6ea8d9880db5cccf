"""What a file beside the checkpoints says of them: the trackers of frameworks, and whatever else names just one.

Pure: a file is its name and its bytes. A tracker's word only ever keeps something; what the pointer makes of it is
newest.py's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .naming import Names, Template, named_by
from .reason import Kind, Reason

RANK = "<rank>"  # in the name of a tracker: a number
INSIDE = "PINNED"  # T5X: what has this file in it stays
LARGEST, LARGEST_KNOWN = 4096, 1 << 20  # bytes of a file that may say something
_LONGEST_STEP = 20  # digits
_STEPS_IN_JSON = ("last_global_step", "best_global_step")  # of EasyR1; the first is its latest
_DIGITS = "0123456789"
_DIGIT = re.compile("[0-9]")
_NUMBER = re.compile(r"[-+]?[0-9.]+")
# TensorFlow's CheckpointState as text: what is restored, and all that it still knows of.
_STATE = r'(?m)^\s*(all_)?model_checkpoint_paths?\s*:\s*"([^"\n]*)"\s*$'


class Pointer(NamedTuple):
    """A file with which a framework names checkpoints of its own.

    form: of one that holds a step, the name that is meant; None where it holds a path or a name. latest: whether it
    names what the framework would resume from, and is written when all of that is there.
    """

    file: str
    form: str | None = None
    latest: bool = True


# Of frameworks that have no row in the table of layouts. Each as its own source writes it.
OTHERS = (
    Pointer("LATEST"), Pointer("LATEST.txt"),  # NeMo Automodel, components/checkpoint/checkpointing.py: a link, mostly
    Pointer("LOWEST_VAL", latest=False), Pointer("LOWEST_VAL.txt", latest=False),
    Pointer("latest_ckpt_global_step.txt", "global_step_{}"),  # SkyRL, skyrl_train/utils/trainer_utils.py
    Pointer("checkpoint_tracker.json", "global_step_{}"),  # EasyR1, verl/utils/checkpoint/checkpoint_manager.py
    Pointer("latest.txt", "{}"),  # nanotron, serialize/main.py
    Pointer("checkpoint"), Pointer("best_dev_checkpoint", latest=False),  # TensorFlow; DeepSpeech
    Pointer(f"last_checkpoint.rank_{RANK}"),  # DINOv2, fsdp/__init__.py
)  # fmt: skip


class Said(NamedTuple):
    """What one file says. names: plain names, the last parts of paths. steps: bare numbers, where they count. stems:
    what names begin with, an ending behind. newest: which of these a framework calls its latest; where two have such a
    file, as each would read it."""

    names: frozenset[str] = frozenset()
    steps: frozenset[int] = frozenset()
    stems: frozenset[str] = frozenset()
    newest: tuple[str | int, ...] = ()


NOTHING = Said()


class Told(NamedTuple):
    """A file that says something, or that would if it could be read: `trouble` is why not."""

    file: str
    said: Said = NOTHING
    known: bool = False
    written_ns: int = 0
    trouble: str = ""

    @property
    def trouble_text(self) -> str:
        """What is wrong with it, and the way out."""
        return f"{self.file} cannot be read ({self.trouble}), and may name any: make it readable, or remove it"


def rows_of(file: str, table: Mapping[str, Sequence[Pointer]]) -> Sequence[Pointer]:
    """What frameworks call their own tracker by the name `file`; nothing for what none does."""
    rows = table.get(file)
    if rows is None and file[-1:].isdigit():
        rows = table.get(file.rstrip(_DIGITS) + RANK)
    return rows or ()


def by_file(pointers: Iterable[Pointer]) -> dict[str, tuple[Pointer, ...]]:
    """The pointers by the names of their files: two frameworks may have one."""
    table: dict[str, tuple[Pointer, ...]] = {}
    for pointer in pointers:
        table[pointer.file] = (*table.get(pointer.file, ()), pointer)
    return table


def said_in(content: bytes, rows: Sequence[Pointer] = ()) -> Said:
    """What is said in a file with this content, which frameworks know by `rows`, or nobody.

    A file that nobody knows has to name exactly one thing, or be JSON with names among its values; and a number alone
    names nothing there.
    """
    if b"\0" in content:
        return NOTHING
    text = content.decode("utf-8", "surrogateescape").strip()  # as the system hands out names
    if "model_checkpoint_path" in text:
        return _of_state(text, rows)
    if text[:1] in ("{", "[", '"'):
        return _of_json(text, rows)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or (len(lines) > 1 and not rows):
        return NOTHING
    return _of(lines, rows, newest=lines[0] if len(lines) == 1 else None)


def reasons_by(
    told: Iterable[Told], series: Iterable[Names], there: Iterable[tuple[str, int]]
) -> dict[str, list[Reason]]:
    """By name, which files name a checkpoint, or may.

    series: those that are looked for. there: names and steps of the checkpoints that are known.
    """
    series, there = tuple(series), tuple(there)
    reasons: dict[str, list[Reason]] = {}
    for each in told:
        kind = Kind.POINTER if each.known else Kind.TRACKER
        for name in sorted(meant(each.said, series, there)):
            reasons.setdefault(name, []).append(Reason(kind, f"named by {each.file}"))
        if each.trouble:
            for name, _ in there:
                reasons.setdefault(name, []).append(Reason(kind, each.trouble_text))
    return reasons


def meant(said: Said, series: Sequence[Names], there: Sequence[tuple[str, int]]) -> set[str]:
    """The names of the checkpoints that `said` is about, there or not."""
    names = set(said.names)
    grids = [each for each in series if each.has_grid] if said.steps or said.stems else []
    if said.steps:
        names.update(name for name, step in there if step in said.steps)
        names.update(each.name_of(step) for each in grids for step in said.steps)
    if said.stems:
        names.update(name for name, _ in there if not said.stems.isdisjoint(stems_of(name)))
        for whole, stem in (pair for each in grids for pair in _without_endings(each)):
            steps = map(stem.step_of, said.stems)
            names.update(whole.name_of(step) for step in steps if step is not None)
    return names


def stems_of(name: str) -> Iterator[str]:
    """What a file's name may be called without its ending."""
    return (name[: dot.start()] for dot in re.finditer(r"\.", name))


def _without_endings(names: Names) -> Iterator[tuple[Template, Template]]:
    """Each template of a series, or of the parts of one, with what names its files without their ending: `ckpt-{}`."""
    for part in getattr(names, "parts", (names,)):
        head, field, end = part.text.rpartition("}")
        if isinstance(part, Template) and "." in end:
            yield part, Template(head + field + end[: end.index(".")])


def _of(texts: Iterable[str], rows: Sequence[Pointer], *, newest: str | None = None) -> Said:
    """What `texts` say, each a name, a path or a number; `newest` is the one that a framework's latest would be."""
    names: set[str] = set()
    steps: set[int] = set()
    for text in texts:
        if _NUMBER.fullmatch(text):
            step = _step_in(text) if rows else None
            if step is not None:
                steps.add(step)
                names.update(row.form.format(step) for row in rows if row.form)
        else:
            names.update(part for part in _parts(text) if _DIGIT.search(part))  # as every checkpoint's name has one
    latest = dict.fromkeys(_read_by(row, newest) for row in rows if row.latest) if newest is not None else ()
    return Said(frozenset(names), frozenset(steps), frozenset(names) if rows else frozenset(), tuple(latest))


def _of_state(text: str, rows: Sequence[Pointer]) -> Said:
    """Of TensorFlow's: paths without the endings of the files that they stand for."""
    found = [(every, named_by(path)) for every, path in re.findall(_STATE, text)]
    said = _of([path for _, path in found], rows, newest=next((path for every, path in found if not every), None))
    return said._replace(stems=said.names)


def _of_json(text: str, rows: Sequence[Pointer]) -> Said:
    try:
        raw = json.loads(text)
        texts = tuple(_texts_in(raw))
    except (ValueError, RecursionError):
        return NOTHING
    if isinstance(raw, str):
        return _of(texts, rows, newest=texts[0])
    said = _of(texts, ())
    if not (rows and isinstance(raw, dict)):
        return said
    steps = {key: str(raw[key]) for key in _STEPS_IN_JSON if type(raw.get(key)) is int}
    known = _of(steps.values(), rows, newest=steps.get(_STEPS_IN_JSON[0]))
    return known._replace(names=known.names | said.names)


def _texts_in(raw: Any) -> Iterator[str]:
    if isinstance(raw, str):
        yield raw.strip()
    elif isinstance(raw, (dict, list)):
        for each in raw.values() if isinstance(raw, dict) else raw:
            yield from _texts_in(each)


def _read_by(row: Pointer, text: str) -> str | int:
    step = _step_in(text)
    if step is None:
        return named_by(text)
    return step if row.form is None else row.form.format(step)


def _step_in(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_STEP else None


def _parts(text: str) -> Iterator[str]:
    """What a name or a path may mean here: its last part, or the first of one that leads into a checkpoint."""
    yield named_by(text)
    if not text.startswith("/"):
        yield text.removeprefix("./").partition("/")[0]
