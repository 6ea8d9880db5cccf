"""Which names look like one series that nobody has named: those that differ in one number.

Pure. A guess is advice: it says how a person could name the series, and nothing is pruned by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import UsageError
from .keyed import given
from .naming import Family, Template, escaped, joined

_FEWEST = 2
_NUMBER = re.compile("([0-9]+)")
_PADDED = re.compile(r"\{:0[0-9]+d\}")
_WORD = re.compile("[a-z]+")
_BETWEEN = re.compile("[-_. ]")
_BESIDE = re.compile("[-_.][A-Za-z]")
_LAST_WORD = re.compile("([a-z_]*[a-z])[^a-z]*$")
# What counts saves in a name, and how a template calls it.
_COUNTERS = {
    "e": "epoch", "ep": "epoch", "epoch": "epoch", "s": "step", "step": "step", "it": "iter",
    "iter": "iter", "iteration": "iteration", "ba": "batch", "batch": "batch",
}  # fmt: skip
# What stands before a number that counts no saves: what differs by it belongs together, or is no checkpoint.
_OTHER_COUNTS = frozenset({
    "batch", "chunk", "class", "client", "cls", "column", "cv", "device", "expert", "fold", "frame", "gpu", "image",
    "img", "index", "layer", "member", "node", "of", "page", "part", "partition", "patient", "pp", "proc",
    "process", "rank", "replica", "run", "sample", "scene", "seed", "segment", "shard", "slice", "split", "stage",
    "subject", "task", "tp", "trial", "user", "v", "ver", "version", "view", "worker",
})  # fmt: skip
# What a file of data is called: such files are told apart by a number too.
_DATA = frozenset({
    "cache", "calib", "calibration", "data", "dataset", "emb", "embedding", "embeddings", "feat", "feats",
    "feature", "features", "frame", "frames", "graph", "image", "images", "img", "input", "inputs", "label",
    "labels", "latent", "latents", "mask", "masks", "output", "outputs", "pred", "prediction", "predictions",
    "preds", "processed", "sample", "samples", "target", "targets", "tensor", "tensors", "test", "token", "tokens",
    "train", "val", "valid", "validation",
})  # fmt: skip
# What only a checkpoint is called.
_CHECKPOINT = frozenset({
    "checkpoint", "checkpoints", "chkpt", "ckpt", "ckpts", "e", "ep", "epoch", "epochs", "iter", "iteration",
    "iters", "model", "net", "network", "params", "s", "save", "snapshot", "state", "step", "steps", "update",
    "weight", "weights",
})  # fmt: skip


class Guess(NamedTuple):
    """A series that would be named by `template`.

    names: those that it would be of, by step. is_named_so: whether a word in them says that they are checkpoints; where
    none does, only bytes that nothing but a checkpoint has can tell.
    """

    template: str
    names: tuple[str, ...]
    is_named_so: bool


def guesses(names: Iterable[str]) -> list[Guess]:
    """The series that `names` look like, those with the most names first."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for name in names:
        pieces = _NUMBER.split(name)
        if len(pieces) > 1:
            groups.setdefault(tuple(pieces[::2]), []).append(pieces)
    found = [guess for group in groups.values() for guess in _guesses_in(group)]
    return sorted(found, key=lambda guess: (-len(guess.names), guess.template))


def is_named_so(name: str) -> bool:
    """Whether a word in a name says that it is a checkpoint, and no number in it that it is only a part or data."""
    pieces = _NUMBER.split(name)
    if len(pieces) == 1:
        return not _CHECKPOINT.isdisjoint(_WORD.findall(name.lower()))
    words = _words(pieces, 1)
    return words is not None and not words.isdisjoint(_CHECKPOINT)


def is_nearly(name: str, sample: str) -> bool:
    """Whether a name differs from another only in its numbers, in case, in what stands between words, and in its
    ending, as one does that was mistyped."""
    return _NUMBER.search(name) is not None and _shape(name) == _shape(sample)


def _shape(name: str) -> str:
    stem = name.rpartition(".")[0] or name
    return _BETWEEN.sub("", _NUMBER.sub("0", stem).lower())


def twins(names: Iterable[str], template: Template) -> list[Guess]:
    """The series that differ from `template` only in how they pad its number, as `epoch_007.pth` from `epoch_7.pth`."""
    head = template.fixed_head
    if head is None:
        return []
    padded = (name for name in names if name.startswith(head + "0"))  # so that 100,000 others cost next to nothing
    plain = _PADDED.sub("{}", template.text)
    found = guesses(name for name in padded if template.step_of(name) is None)
    return [guess for guess in found if _PADDED.sub("{}", guess.template) == plain]


def companions(names: Iterable[str], template: Template) -> list[Guess]:
    """The series that stand beside `template`, such as `epoch_7_optim.pth` beside `epoch_7.pth`."""
    head = template.fixed_head
    if head is None:
        return []
    stem, _, tail = template.text.partition("}")
    found = guesses(name for name in names if name.startswith(head) and template.step_of(name) is None)
    beside = [guess for guess in found if guess.template.startswith(stem + "}")]
    ends = [guess.template[len(stem) + 1 :] for guess in beside]
    return [guess for guess, end in zip(beside, ends) if _BESIDE.match(end) and not (tail and end.startswith(tail))]


def _guesses_in(group: list[list[str]]) -> Iterator[Guess]:
    """What is said of names with the same text around their numbers."""
    if len(group) < _FEWEST:
        return
    numbers = range(1, len(group[0]), 2)
    varying = [at for at in numbers if len({pieces[at] for pieces in group}) > 1]
    if len(varying) != 1:
        yield from _with_fields(group, varying)
        return
    (at,) = varying
    words = _words(group[0], at)
    if words is None:
        return
    head, tail = "".join(group[0][:at]), "".join(group[0][at + 1 :])
    left = {"".join(pieces): pieces[at] for pieces in group}
    padded = sorted({len(text) for text in left.values() if text.startswith("0") and len(text) > 1}, reverse=True)
    for spec in (*(f":0{width}d" for width in padded), ""):
        template = _template(f"{escaped(head)}{{{spec}}}{escaped(tail)}")
        if template is None:
            return
        steps = {name: step for name in left if (step := template.step_of(name)) is not None}
        if len(steps) >= _FEWEST:
            yield Guess(template.text, tuple(sorted(steps, key=steps.__getitem__)), not words.isdisjoint(_CHECKPOINT))
            left = {name: text for name, text in left.items() if name not in steps}


def _with_fields(group: list[list[str]], varying: list[int]) -> Iterator[Guess]:
    """What is said of names in which several numbers differ: one that counts saves, and scores, or several that do."""
    from .formats import PARTS  # few names have several numbers

    words = _words(group[0], varying[0]) if varying else None
    if words is None:
        return
    text, at, plain = escaped(group[0][0]), 1, 0
    while at < len(group[0]):
        whole = {pieces[at] for pieces in group}
        word = _word_before(group[0][at - 1], is_first=at == 1)
        if group[0][at + 1] == "." and at + 2 in varying:
            places = {len(pieces[at + 2]) for pieces in group}
            text += f"{{{word or 'score'}:.{places.pop()}f}}" if len(places) == 1 else f"{{{word or 'score'}}}"
            at += 2
        elif at in varying:
            last = word.rpartition("_")[2]
            name = _COUNTERS.get(last, last if last in PARTS else "")
            plain += not name
            width = max((len(each) for each in whole if each.startswith("0") and len(each) > 1), default=0)
            text += f"{{{name}:0{width}d}}" if width else f"{{{name}}}"
        else:
            text += group[0][at]
        text += escaped(group[0][at + 1])
        at += 2
    if plain > 1:
        return  # which of them counts the saves?
    try:
        series = given(text)
    except UsageError:
        return
    if isinstance(series, Family):
        return
    steps = {name: series.step_of(name) for name in map("".join, group)}
    if None not in steps.values():
        names = sorted(steps, key=lambda name: (steps[name], name))
        yield Guess(text, tuple(names), not words.isdisjoint(_CHECKPOINT))


def _word_before(text: str, *, is_first: bool) -> str:
    """What stands before a number, such as `val_loss`; at the front of a name only the last of it, for a run's name may
    come before that."""
    found = _LAST_WORD.search(text.lower())
    word = found[1].strip("_") if found else ""
    return word.rpartition("_")[2] if is_first else word


def _words(pieces: list[str], at: int) -> set[str] | None:
    """The words of a name whose number is at `at`; None if they say that this number counts no saves."""
    before = _WORD.findall(" ".join(pieces[:at:2]).lower())
    words = {word for text in pieces[::2] for word in _WORD.findall(text.lower())}
    if before and before[-1] in _OTHER_COUNTS:
        return None
    if pieces[at + 1].lower().startswith(("-of-", "_of_")):
        return None
    return None if words & _DATA and not words & _CHECKPOINT else words


def _template(text: str) -> Template | None:
    if len(joined(text)) > 1:
        return None  # it would be read as the names of several files
    try:
        return Template(text)
    except UsageError:
        return None
