"""Several files are one checkpoint: which names go together, and that a plan treats them as one file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.core.checkpoint import Checkpoint, State
from ckptd.core.entry import Entry, entry_of_parts
from ckptd.core.groups import Group
from ckptd.core.keyed import given as named
from ckptd.core.keyed import names_from
from ckptd.core.memory import Memory
from ckptd.core.naming import Template
from ckptd.core.plan import PRUNE, Plan, plan
from ckptd.core.policy import Policy
from ckptd.errors import UsageError

PAIR = "G_{}.pth + D_{}.pth"


def group(text: str) -> Group:
    names = named(text)
    assert isinstance(names, Group)
    return names


def place(names: Group, name: str) -> tuple[object, ...] | None:
    found = names.place_of(name)
    return tuple(found) if found else None


# --- names


@pytest.mark.parametrize(("template", "name", "step", "agreed", "part"), [
    (PAIR, "G_7.pth", 7, (), (0,)),
    (PAIR, "D_7.pth", 7, (), (1,)),
    ("g_{:08d} + do_{:08d}", "do_00005000", 5000, (), (1,)),
    ("epoch_{:03d}.pt + epoch_{}.opt + epoch_{}.ema", "epoch_7.ema", 7, (), (2,)),
    ("G_{epoch}_{loss:.2f}.pt + D_{epoch}_{loss:.2f}.pt", "D_7_0.50.pt", 7, ("0.5",), (1,)),
    ("G_{epoch}_{loss:.2f}.pt + D_{epoch:03d}.pt", "G_7_0.50.pt", 7, (), (0,)),
    ("G_{self.epoch}_{it}.pt + D_{epoch}_{it}.pt", "D_3_700.pt", 700, ("3",), (1,)),
])  # fmt: skip
def test_a_name_tells_which_part_of_which_checkpoint_it_is(
    template: str, name: str, step: int, agreed: tuple[str, ...], part: tuple[int, ...]
) -> None:
    assert place(group(template), name) == (step, agreed, part, None)
    assert group(template).step_of(name) == step


@pytest.mark.parametrize("name", ["G_7.pt", "G_07.pth", "E_7.pth", "G_7.pth + D_7.pth", "G_7.pth.tmp", "D_.pth", ""])
def test_other_names_are_no_parts(name: str) -> None:
    assert group(PAIR).place_of(name) is None
    assert group(PAIR).step_of(name) is None


def test_a_checkpoint_is_called_as_its_first_part() -> None:
    names = group(PAIR)
    assert (names.name_of(7), names.sample, names.has_grid, names.is_group) == ("G_7.pth", "G_7.pth", True, True)
    assert not group("G_{epoch}_{loss:.2f}.pt + D_{epoch}.pt").has_grid


@pytest.mark.parametrize(("written", "text"), [
    (PAIR, PAIR),
    ("G_{epoch}.pth  +  D_{epoch}.pth", PAIR),
    ("G_<>.pth + D_<n>.pth", PAIR),
    ("G_{e + 1}.pth + D_{e + 1}.pth", PAIR),
    ("G_{epoch}_{x:.2f}.pt + D_{epoch}.pt", "G_{epoch}_{x:.2f}.pt + D_{}.pt"),
])  # fmt: skip
def test_a_series_has_one_text_and_is_found_by_it_again(written: str, text: str) -> None:
    names = group(written)
    assert names.text == text
    assert names_from(text) == names


@pytest.mark.parametrize("text", ["a + b_{}.pth", "epoch_{e + 1}.pth"])
def test_a_name_that_holds_a_plus_is_remembered_as_what_it_was(text: str) -> None:
    assert isinstance(names_from(text), Template)


@pytest.mark.parametrize(("template", "why"), [
    ("G_{}.pth + G_{}.pth", "names G_{}.pth twice"),
    ("G_{}.pth + D_{}.pth + G_{}.pth", "names G_{}.pth twice"),
    ("ckpt_{}.pth + ckpt_{:03d}.pth", "a name can be of ckpt_{}.pth and of ckpt_{:03d}.pth too"),
    ("x_{}.pt + {*}_{}.pt", "a name can be of"),
    ("a1_{}_2.pt + a{}_3_2.pt", "a name can be of"),
    ("G_{}.pth + D.pth", "'D.pth' has no field"),
    ("G_{}.pth + ", "'' has no field"),
    (" + G_{}.pth", "'' has no field"),
    ("G_{epoch}.pth + D_{step}.pth", "counts epoch"),
    ("G_{epoch}.pth + D_{time}.pth", "one step"),
    ("{name}_{epoch}.pth + D_{epoch}.pth", "tells series apart"),
    ("{x}_{epoch}.pth + D_{epoch}.pth", "tells series apart"),
    ("epoch={}-step={}.ckpt + D_{}.pth", "could each be the step"),
    ("G_{}{}.pth + D_{}.pth", "could each be the step"),
    ("G_{}.pth+D_{}.pth", "are joined with ' + '"),
    ("a/G_{}.pth + D_{}.pth", "holds a '/'"),
])  # fmt: skip
def test_what_cannot_be_one_checkpoint_is_refused_with_the_reason(template: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        named(template)
    assert why in str(refused.value)


@pytest.mark.parametrize("templates", [
    (PAIR, "G_{}.pth"), ("D_{}.pth", PAIR), (PAIR, "E_{}.pth + D_{}.pth"),
])  # fmt: skip
def test_what_is_a_part_is_no_checkpoint_by_itself(templates: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="is named twice"):
        Policy(templates=templates)


TEMPLATES = ["a_{}.pt", "a_{:03d}.pt", "b_{}.pt", "{}_a.pt", "a_{*}_{}.pt", "a_{:x}.pt", "{}.pt", "a_{}"]


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(TEMPLATES, 2)))
def test_two_templates_go_together_only_where_no_name_is_of_both(one: str, other: str) -> None:
    alone = [named(text) for text in (one, other)]
    names = [f"{a}{n}{b}" for n in ("0", "7", "007", "07", "100", "ff", "1_2", "x_3") for a in ("a_", "b_", "", "a_x_")
             for b in (".pt", "_a.pt", "")]  # fmt: skip
    shared = [n for n in names if all(each.step_of(n) is not None for each in alone)]  # type: ignore[union-attr]
    try:
        named(f"{one} + {other}")
    except UsageError:
        return
    assert not shared


# --- ranks

RANKS = "model_{step:07d}.rank_{rank}.pth"


@pytest.mark.parametrize(("template", "name", "step", "agreed", "part", "of"), [
    (RANKS, "model_0002499.rank_3.pth", 2499, (), (0, 3), None),
    ("ep{epoch}-ba{batch}-rank{rank}.pt", "ep0-ba10-rank12.pt", 10, ("0",), (0, 12), None),
    ("ep{epoch}-ba{batch}-rank{*}.pt", "ep0-ba10-rank12.pt", 10, ("0",), (0, 12), None),
    ("model_{step}_tp{tp}_pp{pp:02d}.pt", "model_5_tp1_pp02.pt", 5, (), (0, 1, 2), None),
    ("m_{step}.pt + o_{step}_rank{rank}.pt", "m_5.pt", 5, (), (0,), None),
    ("m_{step}.pt + o_{step}_rank{rank}.pt", "o_5_rank3.pt", 5, (), (1, 3), None),
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", "m-7-00001-of-00004.bin", 7, ("4",), (0, 1), 4),
    ("m-{step}-{shard:05d}-of-00004.bin", "m-7-00001-of-00004.bin", 7, (), (0, 1), 4),
    ("m_{step}_world_size_{world_size}_rank_{rank}.pt", "m_7_world_size_8_rank_0.pt", 7, ("8",), (0, 0), 8),
    ("c-{}.index + c-{step}.data-{shard:05d}-of-{n:05d}", "c-7.data-00000-of-00001", 7, (), (1, 0), 1),
])  # fmt: skip
def test_a_name_tells_its_rank_and_perhaps_how_many_there_are(
    template: str, name: str, step: int, agreed: tuple[str, ...], part: tuple[int, ...], of: int | None
) -> None:
    assert place(group(template), name) == (step, agreed, part, of)
    assert names_from(group(template).text) == group(template)


@pytest.mark.parametrize(("template", "there", "missing"), [
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", range(1, 5), []),
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", range(4), []),
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", range(3), ["part 3 of 4"]),
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", (1, 2, 4), ["part 3 of 4"]),
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", (0, 2), ["part 1, 3 of 4"]),
    ("m-{step}-{shard:05d}-of-{n:05d}.bin", (0, 1, 2, 9), ["part 3 of 4"]),
])  # fmt: skip
def test_what_is_missing_is_told_by_a_name_that_says_how_many_there_are(
    template: str, there: Iterable[int], missing: list[str]
) -> None:
    names = group(template)
    places = [names.place_of(f"m-7-{shard:05d}-of-00004.bin") for shard in there]
    assert names.missing([each for each in places if each], 7) == [f"{text} ({template})" for text in missing]
    assert not names.tells_ranks


def test_a_huge_number_of_parts_takes_no_time() -> None:
    names = group("m-{step}-{shard}-of-{n}.bin")
    one = names.place_of(f"m-7-1-of-{10**40}.bin")
    assert one is not None
    assert f"part 0, 2, 3 and {10**40 - 4} more of" in names.missing([one], 7)[0]


PIECES = st.from_regex(r"[a-z0-9_.{}:!*%=-]{0,20}", fullmatch=True) | st.sampled_from(
    ["G_{}.pth", "D_{}.pth", "{epoch}-{loss:.2f}.pt", "m_{step}_rank{rank}.pt", "{*}_{n}.pt", "x-{shard}-of-{n}"]
)


@given(st.lists(PIECES, min_size=1, max_size=3).map(" + ".join))
def test_any_text_is_a_group_or_something_else_or_refused(text: str) -> None:
    try:
        names = named(text)
    except UsageError:
        return
    if isinstance(names, Group):
        assert names_from(names.text) == names
        for part in names.parts:
            found = names.place_of(part.sample)
            assert found is not None
            assert found.step == names.step_of(part.sample) == part.step_of(part.sample)


# --- plans: groups that are all whole are planned as single files are


def files_of(steps: list[tuple[int, str]], *, as_groups: bool) -> list[Checkpoint]:
    """A checkpoint of each step in order of writing: "GD" for both parts, "G" or "D" for half of it."""
    made = []
    for at, (step, there) in enumerate(steps, 1):
        state = State.COMPLETE if there == "GD" else State.INCOMPLETE
        parts = [Entry(PAIR, f"{part}_{step}.pth", step, 5, at * 10 + (part == "D")) for part in there]
        entry = (
            entry_of_parts(PAIR, f"G_{step}.pth", step, parts)
            if as_groups
            else Entry("G_{}.pth", f"G_{step}.pth", step, 5 * len(parts), max(part.mtime_ns for part in parts))
        )
        made.append(Checkpoint(entry, state, "half"))
    return made


def planned(steps: list[tuple[int, str]], memory: Memory, *, as_groups: bool, **policy: int) -> Plan:
    made = Policy(templates=(PAIR if as_groups else "G_{}.pth",), **policy)  # type: ignore[arg-type]
    found = files_of(steps, as_groups=as_groups)
    return plan(found, made, memory=memory, now_ns=10**9, protected={}, declared={}, patterns=made.patterns)


def outcome(decided: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(d.checkpoint.name, d.decision, d.reasons) for d in decided.decisions]


SAVES = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from(["GD", "GD", "GD", "G", "D"])), max_size=9, unique_by=lambda s: s[0]
)
POLICIES = st.fixed_dictionaries(
    {"max_keep": st.integers(1, 3)}, optional={"interval": st.integers(1, 2), "keep_every": st.integers(2, 4)}
)


@given(SAVES, POLICIES, st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_a_plan_treats_a_group_as_it_does_one_file(
    saves: list[tuple[int, str]], policy: dict[str, int], met: int
) -> None:
    memories = [Memory(), Memory()]
    for seen in (saves[:met], saves):
        one, other = (planned(seen, memories[groups], as_groups=bool(groups), **policy) for groups in (0, 1))
        memories = [one.memory, other.memory]
        assert outcome(one) == outcome(other)


@given(SAVES, POLICIES)
@settings(max_examples=300, deadline=None)
def test_half_a_group_counts_for_nothing_and_has_no_whole_one_go(
    saves: list[tuple[int, str]], policy: dict[str, int]
) -> None:
    decided = planned(saves, Memory(), as_groups=True, **policy)
    whole = [d for d in decided.decisions if d.checkpoint.state.whole]
    stays = [d for d in whole if d.decision != PRUNE]
    assert len(stays) >= min(policy["max_keep"], len(whole))
    assert all(c.state.whole for c in decided.relied_on)
    if "keep_every" not in policy:
        alone = planned([save for save in saves if save[1] == "GD"], Memory(), as_groups=True, **policy)
        if policy.get("interval") is None:
            gone = {d.checkpoint.name for d in whole if d.decision == PRUNE}
            assert gone <= {d.checkpoint.name for d in alone.prune}
