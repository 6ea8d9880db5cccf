"""Series of checkpoints whose names nobody has given: names that differ in a number, and bytes that bear it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..core import kinds
from ..core.checkpoint import State
from ..core.finder import Finder
from ..core.guess import Guess, guesses, is_named_so
from ..core.layouts import DEFAULT_LAYOUTS, Layout
from ..errors import CkptdError
from .files import Structure, structure_of_file
from .scan import PARTS

if TYPE_CHECKING:
    from .view import DirectoryView

# Of files whose bytes are no proof, those that a loader of checkpoints takes.
_ENDINGS = (".ckpt", ".h5", ".hdf5", ".keras", ".msgpack", ".npz", ".params", ".pdparams", ".pkl", ".pickle", ".pt",
            ".pth", ".tar", ".weights", ".zip")  # fmt: skip
_HEADS = (b"PK\x03\x04", b"\x89HDF", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")
_TABLE = bytes.fromhex("57fb808b247547db")  # at the end of a table of LevelDB's, which TensorFlow's index is


class Series(NamedTuple):
    """A series that nobody has named, and what its files are."""

    guess: Guess
    what: str


def series_in(directory: DirectoryView) -> list[Series]:
    """The series in a directory that have a checkpoint's bytes. Raises OSError if it cannot be listed."""
    there = [name for name in directory.names if not name.startswith(".")]
    found: list[Series] = []
    for guess in guesses(name for name in there if not directory.is_dir(name)):
        what = files_of(guess, directory)
        if what:
            found.append(Series(guess, what))
    if len(found) > 1:
        found = _joined(found, directory)
    found.extend(
        Series(guess, "directories")
        for guess in guesses(name for name in there if directory.is_dir(name))
        if all(_is_checkpoint(name, directory, guess) for name in _some(guess.names))
    )
    return found


def _joined(found: Sequence[Series], directory: DirectoryView) -> list[Series]:
    """The series, with those as one that are parts of one checkpoint each."""
    from ..core.partners import joined  # few have several

    names = [name for series in found for name in series.guess.names]
    of = {name: series.what for series in found for name in series.guess.names}
    together = joined((series.guess for series in found), {name: directory.about(name).mtime_ns for name in names})
    whats = [{of[name] for name in guess.names} for guess in together]
    return [Series(guess, what.pop() if len(what) == 1 else "files") for guess, what in zip(together, whats)]


def files_of(guess: Guess, directory: DirectoryView) -> str:
    """What the files of a series are, "" if they are no checkpoints."""
    seen, whole = set(), False
    for name in _some(guess.names):
        try:
            structure, taken = _look(name, directory, is_named_so=guess.is_named_so)
        except (OSError, CkptdError):
            return ""
        if structure.kind not in kinds.FILES and not taken:
            return ""
        seen.add(structure.kind)
        whole = whole or structure.state is not State.INCOMPLETE
    if not whole:
        return ""  # half a zip could be of anybody's
    if seen <= {kinds.TORCH, kinds.LEGACY}:
        return "torch files"
    return "safetensors files" if seen == {kinds.SAFETENSORS} else "files"


def looks_like_one(name: str, directory: DirectoryView) -> bool:
    """Whether a file or a directory has a checkpoint's bytes; of files that could be anybody's, whether it is called as
    one too. Raises OSError if it cannot be read."""
    try:
        if directory.is_dir(name):
            from .directories import is_claimed  # here, as in verdict: most runs save files

            with directory.opened_dir(name) as inside:
                return is_claimed(inside)
        if not name.endswith((*PARTS, *_ENDINGS)):
            return False
        structure, taken = _look(name, directory, is_named_so=is_named_so(name))
        return taken or (structure.known and structure.kind != kinds.HDF5)  # which holds anybody's data
    except (FileNotFoundError, CkptdError):
        return False


def _look(name: str, directory: DirectoryView, *, is_named_so: bool) -> tuple[Structure, bool]:
    """What a file looks like; and whether it is taken for a checkpoint by its name, as its first bytes may be one's."""
    with directory.opened_file(name) as file:
        structure, head = structure_of_file(file), file.read(4, 0)
    taken = is_named_so and name.endswith(_ENDINGS) and head.startswith(_HEADS)
    return structure, taken or _is_tensorflows(name, directory)


def _is_tensorflows(name: str, directory: DirectoryView) -> bool:
    """Whether a file is an index as TensorFlow writes them, or the data that one is about, which say nothing."""
    if ".data-" not in name and not name.endswith(".index"):
        return False
    with directory.opened_file(name.partition(".data-")[0].removesuffix(".index") + ".index") as index:
        return index.read(len(_TABLE), max(0, index.size_bytes - len(_TABLE))) == _TABLE


def _is_checkpoint(name: str, directory: DirectoryView, guess: Guess) -> bool:
    """Whether a directory is one: by a framework's marker, or by what it holds, which is no run of its own."""
    from .directories import is_claimed  # here, as in verdict: most runs save files

    try:
        with directory.opened_dir(name) as inside:
            if is_claimed(inside):
                return True
            if not (guess.is_named_so or _bare(name)) or _is_run(inside):
                return False
            if any(_has_weights(each, inside) for each in inside.names):
                return True
            # By role or by what they hold, as in `step_10/policy/model.pt`; a bare number could be anything's.
            return guess.is_named_so and any(_is_part(each, inside) for each in inside.names)
    except (OSError, CkptdError):
        return False


def _is_run(directory: DirectoryView) -> bool:
    run = Finder((), DEFAULT_LAYOUTS)
    return bool(guesses(directory.names)) or any(run.match(each) for each in directory.names)


def _is_part(name: str, directory: DirectoryView) -> bool:
    """Whether a directory in a directory has weights, and is no run of its own."""
    from .directories import is_claimed

    if not directory.is_dir(name):
        return False
    with directory.opened_dir(name) as inside:
        return is_claimed(inside) or (not _is_run(inside) and any(_has_weights(each, inside) for each in inside.names))


def _has_weights(name: str, directory: DirectoryView) -> bool:
    if not name.endswith((*_ENDINGS, ".safetensors")):
        return False
    try:
        with directory.opened_file(name) as file:
            return structure_of_file(file).kind in kinds.FILES
    except (OSError, CkptdError):
        return False


def _bare(name: str) -> bool:
    return name.isascii() and name.isdigit()


def is_of(layout: Layout, name: str, directory: DirectoryView) -> bool:
    """Whether the bytes of `name` are a checkpoint by that layout."""
    try:
        if directory.is_dir(name):
            from .directories import structure_of_directory

            with directory.opened_dir(name) as inside:
                return structure_of_directory(inside, layout.kinds).kind in layout.kinds
        with directory.opened_file(name) as file:
            return structure_of_file(file).kind in layout.kinds
    except (OSError, CkptdError):
        return False


def _some(names: Sequence[str]) -> Sequence[str]:
    """The first, the last and one between."""
    return (names[0], names[len(names) // 2], names[-1])
