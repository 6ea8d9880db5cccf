"""Which checkpoints of several files are of two saves, by what their files were when they were whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from ckptd.core.checkpoint import Checkpoint, State
from ckptd.core.entry import Entry, entry_of_parts
from ckptd.core.half_saved import Former
from ckptd.core.keyed import names_from
from ckptd.core.memory import Memory
from ckptd.core.policy import Policy
from ckptd.core.replay import replay

GROUP, OTHER_WAY = "G_{}.pth + D_{}.pth", "D_{}.pth + G_{}.pth"
Save = tuple[str, int]  # a file and which of its versions
BROKEN = 0


def entry(*files: Save, series: str = GROUP) -> Entry:
    parts = [Entry("", f"{name}_3.pth", 3, 10, version, inode=version) for name, version in files]
    return entry_of_parts(series, f"{series[0]}_3.pth", 3, parts)


def passes(*looks: Sequence[Save], series: str = GROUP, memory: Memory | None = None) -> tuple[Memory, list[str]]:
    """What passes remember that see the files one after another, and what each says of their being of two saves."""
    memory, said = memory or Memory(), list[str]()
    for files in looks:
        found = entry(*files, series=series)
        said.append(Former(memory.seen).mixed(found))
        broken = len(files) < 2 or BROKEN in dict(files).values()
        state = State.INCOMPLETE if broken else State.DOUBTFUL if said[-1] else State.COMPLETE
        names = [names_from(series)]
        policy = Policy(templates=(series,))
        memory = replay([Checkpoint(found, state)], memory, policy, now_ns=99, declared={}, patterns=names).memory
    return memory, said


OLD, G, D, NEW = [("G", 1), ("D", 1)], [("G", 2), ("D", 1)], [("G", 1), ("D", 2)], [("G", 2), ("D", 2)]
ONLY_G, ONLY_D = [("G", 1)], [("D", 1)]


@pytest.mark.parametrize(("looks", "of_two_saves"), [
    pytest.param([OLD, OLD, NEW], [False, False, False], id="saved again"),
    pytest.param([OLD, G, G, NEW], [False, True, True, False], id="the first file is saved before the other"),
    pytest.param([OLD, D, D, NEW], [False, True, True, False], id="the other one is"),
    pytest.param([OLD, ONLY_D, G, G, NEW], [False, False, True, True, False], id="one is removed, and saved anew"),
    pytest.param([OLD, ONLY_G, ONLY_G, D], [False, False, False, True], id="seen without it more than once"),
    pytest.param([OLD, ONLY_D, OLD, G], [False, False, False, True], id="moved away and back"),
    pytest.param([OLD, ONLY_D, [("D", 2)], NEW], [False] * 4, id="all of it is removed in the end"),
    pytest.param([OLD, ONLY_D, G, OLD], [False, False, True, False], id="what was removed is brought back"),
    pytest.param([ONLY_D, G], [False, False], id="never whole before"),
    pytest.param([[("G", BROKEN), ("D", 1)], G], [False, False], id="of which one was broken"),
])  # fmt: skip
def test_what_is_new_beside_what_is_not_is_of_two_saves(looks: list[list[Save]], of_two_saves: list[bool]) -> None:
    assert [bool(text) for text in passes(*looks)[1]] == of_two_saves


@pytest.mark.parametrize("more", [[], [ONLY_D]], ids=["at once", "after one was removed"])
def test_it_is_known_too_where_its_template_says_the_files_in_another_order(more: list[list[Save]]) -> None:
    memory, _ = passes(OLD, *more, G)
    memory, said = passes(G, G, series=OTHER_WAY, memory=memory)
    assert all(said), said
    memory, said = passes(NEW, series=OTHER_WAY, memory=memory)
    assert not any(said)
    assert not any(passes(NEW, NEW, memory=memory)[1]), "and in the former order again"


def test_law_of_any_history_what_has_files_of_two_whole_saves_is_told() -> None:
    """Of all sequences of four looks, whichever file is written, removed or left between them."""
    for made in itertools.product(("G", "D", "-G", "-D", "both"), repeat=4):
        there, whole, looks, expected = dict(OLD), dict(OLD), [OLD], [False]
        for version, what in enumerate(made, 2):
            if what[0] == "-":
                there.pop(what[1:], None)
            else:
                there |= dict.fromkeys(there | {"G": 0, "D": 0} if what == "both" else what, version)
            if not there:
                break
            left = [name for name in there if there[name] == whole.get(name)]
            mixed = len(there) == 2 and len(left) == 1
            looks.append(sorted(there.items(), reverse=True))
            expected.append(mixed)
            if not left and len(there) == 2:
                whole = dict(there)
            elif not left:
                whole = {}
        assert [bool(text) for text in passes(*looks)[1]] == expected, made
