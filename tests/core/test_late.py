"""A changed max_keep on a run that saves no more: what it acts on, and when it leaves everything as it is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from ckptd.core.late import after_pass, is_behind, is_larger, is_smaller, quiet_from_ns
from ckptd.core.memory import BROUGHT_BACK, InForce, Seen, SeriesMemory
from ckptd.core.plan import KEEP, SKIP
from ckptd.core.policy import Policy
from ckptd.core.schedule import Schedule
from tests.core.directory import EPOCHS, Directory
from tests.golden_cases import CASES, Outside, happenings, policy_of


def ran(*steps: int, max_keep: int | None, interval: int | None = 1) -> Directory:
    """A run that has saved `steps`, each seen, and is no more."""
    directory = Directory()
    for step in steps:
        directory.save(step)
        directory.prune(max_keep, interval)
    return directory


# --- a smaller K


def test_a_smaller_k_acts_on_a_run_that_has_ended() -> None:
    directory = ran(*range(1, 10), max_keep=5)
    assert directory.prune(3) == [7, 8, 9]
    assert directory.prune(1) == [9]


def test_the_newest_walks_once_and_stops_at_a_hole() -> None:
    directory = ran(1, 2, 4, 5, 6, 7, 8, max_keep=9)
    assert directory.prune(2) == [1, 2, 7, 8]
    directory.written["epoch_3.pth"] = 3  # somebody brings it back
    assert directory.prune(2) == [1, 2, 3, 7, 8]


def test_what_is_newest_by_writing_walks_and_not_what_has_the_highest_step() -> None:
    directory = ran(1, 2, 3, 4, 5, 6, 3, 4, max_keep=4)
    before = directory.steps()
    assert [step for step in before if step not in directory.prune(1)] == [3]


def test_an_incomplete_newest_does_not_walk() -> None:
    directory = ran(*range(1, 7), max_keep=3)
    directory.save(7)
    directory.broken.add("epoch_7.pth")
    directory.prune(3)
    assert directory.prune(1) == [6, 7]


def test_k_is_of_each_series() -> None:
    directory = Directory()
    both = Policy(max_keep=3, interval=1, templates=("epoch_{}.pth", "iter_{}.pth"))
    for step in range(1, 6):
        directory.write(f"epoch_{step}.pth")
        directory.write(f"iter_{step}.pth")
        directory.reconcile(both)
    directory.write("iter_6.pth")  # here a save has come first
    directory.written["iter_1.pth"] = 0
    directory.reconcile(replace(both, max_keep=1))
    assert set(directory.written) == {"epoch_5.pth", "iter_1.pth", "iter_6.pth"}


def test_a_series_that_this_policy_does_not_name_keeps_what_was_in_force() -> None:
    directory = Directory()
    epochs, iters = (Policy(max_keep=3, interval=1, templates=(t,)) for t in ("epoch_{}.pth", "iter_{}.pth"))
    for step in range(1, 6):
        directory.write(f"epoch_{step}.pth")
        directory.reconcile(epochs)
        directory.write(f"iter_{step}.pth")
        directory.reconcile(iters)
    directory.reconcile(replace(iters, max_keep=1))
    assert sorted(directory.written) == ["epoch_3.pth", "epoch_4.pth", "epoch_5.pth", "iter_5.pth"]
    directory.reconcile(replace(epochs, max_keep=2))
    assert sorted(directory.written) == ["epoch_4.pth", "epoch_5.pth", "iter_5.pth"]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param({"max_keep": 3}, {"max_keep": 5}, id="a larger K"),
        pytest.param({"max_keep": 5}, {"max_keep": 5}, id="the same K"),
        pytest.param({"max_keep": 5}, {"max_keep": 3, "interval": 2}, id="another interval"),
        pytest.param({"max_keep": 5, "interval": None}, {"max_keep": 3, "interval": None}, id="an inferred interval"),
        pytest.param({"max_keep": 5, "interval": None}, {"max_keep": None}, id="no K"),
    ],
)
def test_nothing_walks_for(before: dict, now: dict) -> None:
    directory = ran(1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, **before)
    left = directory.steps()
    assert directory.prune(**now) == left
    assert directory.prune(**now) == left


def test_a_larger_k_can_reach_what_a_smaller_one_did_not_and_walks_nothing() -> None:
    directory = ran(*range(1, 7), max_keep=9)
    directory.save(10)
    assert directory.prune(3) == [1, 2, 3, 4, 5, 6, 10]  # 10 - 3 is a hole
    assert directory.prune(5) == [1, 2, 3, 4, 5, 6, 10]  # and 10 - 5 is there


def test_another_rule_walks_nothing() -> None:
    directory = ran(10, 20, 21, 30, 40, 41, 50, max_keep=9, interval=10)
    directory.prune(7, 10, "newest")
    left = directory.steps()
    assert directory.prune(2, 10, "stepped") == left
    assert directory.prune(1, 10, "stepped") != left  # now that rule was in force


def test_a_k_that_was_lowered_on_an_inferred_interval_acts_once_the_interval_is_given() -> None:
    directory = ran(*range(1, 9), max_keep=5, interval=None)
    assert directory.prune(2, None) == [4, 5, 6, 7, 8]
    assert directory.plan(Policy(max_keep=2)).series[0].grid.waits_for_interval
    assert directory.prune(2, 1) == [7, 8]


def test_a_declared_k_acts_at_saves_only() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.declared = {EPOCHS.text: Schedule(EPOCHS.text, "epoch", 1, 2)}
    assert directory.prune(None, None) == [3, 4, 5, 6, 7]
    directory.save(8)
    assert directory.prune(None, None) == [7, 8]


def test_a_k_that_a_person_gives_acts_on_what_a_declared_one_left_and_on_its_interval() -> None:
    directory = Directory()
    directory.declared = {EPOCHS.text: Schedule(EPOCHS.text, "epoch", 1, 4)}
    for step in range(1, 8):
        directory.save(step)
        directory.prune(None, None)
    assert directory.steps() == [4, 5, 6, 7]
    assert directory.prune(2, None) == [6, 7]


def test_a_brought_back_newest_walks_nothing() -> None:
    directory = ran(*range(1, 8), max_keep=3)
    for step in (5, 6, 7):
        del directory.written[EPOCHS.name_of(step)]
    directory.prune(3)
    directory.memory = replace(
        directory.memory,
        seen={n: Seen(EPOCHS.text, n, s, 1, s, s, BROUGHT_BACK) for s in (2, 3, 4) for n in [EPOCHS.name_of(s)]},
    )
    directory.written = {EPOCHS.name_of(step): step for step in (2, 3, 4)}
    assert directory.prune(1) == [2, 3, 4]


@pytest.mark.parametrize("before", [None, 5])
def test_what_somebody_has_just_brought_back_does_not_go_for_a_late_walk(before: int | None) -> None:
    directory = ran(1, 2, 3, 5, max_keep=before)
    directory.written["epoch_4.pth"] = 0
    assert directory.prune(1) == ([3, 4, 5] if before is None else [1, 2, 3, 4, 5])


def test_a_state_that_does_not_tell_what_was_in_force_walks_nothing() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    series = {text: SeriesMemory(known.interval, known.recent) for text, known in directory.memory.series.items()}
    directory.memory = replace(directory.memory, series=series)
    assert directory.prune(3) == [3, 4, 5, 6, 7]
    assert directory.prune(2) == [6, 7]  # now it does


def test_a_look_without_k_at_such_a_state_leaves_what_it_knows_and_takes_note_of_what_comes() -> None:
    directory = ran(*range(1, 6), max_keep=None)
    directory.memory = replace(directory.memory, series={EPOCHS.text: SeriesMemory(1, (1, 2, 3, 4, 5))})
    directory.prune(None)
    assert directory.prune(2) == [1, 2, 3, 4, 5]
    directory.memory = replace(directory.memory, series={EPOCHS.text: SeriesMemory(1, (1, 2, 3, 4, 5))})
    directory.save(6)
    directory.prune(None)
    assert directory.prune(2) == [5, 6]


# --- the first K after looks without one


@pytest.mark.parametrize("looks", [0, 1, 3])
def test_looks_without_k_change_nothing_of_what_the_first_k_does(looks: int) -> None:
    """A plain walk from the newest would leave 1 3 5 10."""
    directory = Directory()
    directory.save(1, 3, 5, 6, 8, 10)
    for _ in range(looks):
        directory.plan(Policy(max_keep=1, interval=2))
        directory.prune(None)
    assert directory.prune(1, 2) == [5, 10]


def test_a_look_after_each_save_is_a_look_after_all() -> None:
    assert ran(1, 3, 5, 6, 8, 10, max_keep=None, interval=2).prune(1, 2) == [5, 10]


def test_a_save_that_comes_first_walks_alone() -> None:
    """As the hook's does over what was there before it."""
    directory = Directory()
    directory.save(1, 3, 5, 6, 8)
    directory.prune(None)
    directory.save(10)
    assert directory.prune(1, 2) == [1, 3, 5, 10]
    assert directory.prune(1, 2) == [1, 3, 5, 10]


def test_saves_seen_between_two_ks_walk_by_the_second() -> None:
    directory = ran(*range(1, 6), max_keep=3)
    directory.save(6, 7)
    directory.prune(None)
    assert directory.steps() == [3, 4, 5, 6, 7]
    assert directory.prune(3) == [5, 6, 7]


def test_a_save_that_walks_late_walks_over_nothing_that_came_after_it() -> None:
    directory = ran(5, 6, 7, max_keep=3)
    directory.save(10, 9, 20)
    directory.prune(None)
    assert directory.prune(1) == [5, 6, 7, 9, 10, 20]


def test_an_inferred_interval_is_that_of_a_first_contact() -> None:
    directory = Directory()
    for step in (1, 2, 3, 4, 10, 17, 23, 40, 66, 99, 120, 160):
        directory.save(step)
        directory.prune(None, None)
    fresh = Directory(list(directory.written))
    assert directory.prune(3, None) == fresh.prune(3, None)


def test_a_directory_in_doubt_that_was_looked_at_without_k_keeps_all() -> None:
    """As a copy has it, whose times are those of the copying."""
    directory = Directory()
    directory.save(1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)
    directory.prune(None)
    assert directory.prune(1) == [*range(1, 12)]
    assert directory.prune(1) == [*range(1, 12)]


def test_a_directory_that_was_looked_at_while_it_was_copied_keeps_all() -> None:
    directory = Directory()
    for steps in ((1, 10, 11), (2, 3, 4, 5), (6, 7, 8, 9)):
        directory.save(*steps)
        directory.prune(None)
    assert directory.prune(1) == [*range(1, 12)]
    assert directory.prune(1) == [*range(1, 12)]


# --- while a run may go on


def test_a_changed_k_waits_for_the_next_save_of_a_run_that_has_not_ended() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.ended = False
    waiting = directory.plan(Policy(max_keep=2, interval=1)).series[0].grid
    assert (waiting.waits_for_end, waiting.quiet_from_ns) == (True, 7 + 5)
    for _ in range(2):
        assert directory.prune(2) == [3, 4, 5, 6, 7]
    directory.ended = True
    assert directory.prune(2) == [6, 7]


def test_a_save_that_comes_first_is_the_walk() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.ended = False
    directory.prune(2)
    directory.save(12)
    directory.prune(2)
    directory.ended = True
    assert directory.prune(2) == [3, 4, 5, 6, 7, 12]


def test_a_k_that_is_raised_again_before_it_acted_takes_nothing() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.ended = False
    directory.prune(2)
    directory.ended = True
    assert directory.prune(5) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param([], None, id="no save"),
        pytest.param([10], None, id="one save has no interval"),
        pytest.param([10, 20], 70, id="five intervals after the last"),
        pytest.param([0, 10, 20, 500, 510], 560, id="a pause counts for nothing"),
        pytest.param([0, 1, 2, 10, 20, 30], 70, id="the gap in the middle counts"),
        pytest.param([0, 10, 20, 30, 31], 81, id="nor does a last save that was early"),
    ],
)
def test_a_series_is_quiet_after_five_intervals(written: list[int], expected: int | None) -> None:
    saves = [Seen("s", str(ns), ns, 1, ns, ns, at) for at, ns in enumerate(written, 1)]
    assert quiet_from_ns(saves) == expected


# --- what is in force

THREE = InForce(3, "stepped", 1)


@pytest.mark.parametrize(("asked", "before", "smaller", "larger"), [
    pytest.param(THREE, THREE, False, False, id="the same"),
    pytest.param(THREE._replace(max_keep=2), THREE, True, False, id="one less"),
    pytest.param(THREE._replace(max_keep=4), THREE, False, True, id="one more"),
    pytest.param(InForce(2, "newest", 1), THREE, False, False, id="one less by another rule"),
    pytest.param(InForce(2, "stepped", 2), THREE, False, False, id="one less on another grid"),
    pytest.param(InForce(4, "newest", 2), THREE, False, True, id="more, whatever else"),
    pytest.param(THREE, None, False, False, id="the first one"),
    pytest.param(None, THREE, False, False, id="none any more"),
    pytest.param(None, None, False, False, id="never any"),
])  # fmt: skip
def test_a_k_is_smaller_where_nothing_else_has_changed_and_larger_whatever_has(
    asked: InForce | None, before: InForce | None, smaller: bool, larger: bool
) -> None:
    assert (is_smaller(asked, before), is_larger(asked, before)) == (smaller, larger)
    if asked is not None:
        assert is_behind(SeriesMemory(in_force=before, walked=5), asked, 5) is smaller
        assert is_behind(SeriesMemory(in_force=before, walked=5), asked, 6), "a save that has not walked"
        assert is_behind(SeriesMemory(in_force=before), asked, 1)


TWO, FOUR = THREE._replace(max_keep=2), THREE._replace(max_keep=4)


@pytest.mark.parametrize(("asked", "walked", "settled", "in_force", "order"), [
    pytest.param(None, False, False, THREE, 5, id="no K changes nothing"),
    pytest.param(TWO, True, False, TWO, 9, id="saves have walked"),
    pytest.param(TWO, False, True, TWO, 9, id="a person has said so, and no walk is to be made"),
    pytest.param(TWO, False, False, THREE, 5, id="a smaller one that is only declared acts at a save"),
    pytest.param(FOUR, False, False, FOUR, 5, id="a larger one is in force at once, and no save has walked by it"),
])  # fmt: skip
def test_what_is_in_force_after_a_pass(
    asked: InForce | None, walked: bool, settled: bool, in_force: InForce, order: int
) -> None:
    was = SeriesMemory(interval=1, recent=(1, 2), in_force=THREE, walked=5)
    after = after_pass(was, asked, 7, 9, walked=walked, settled=settled)
    assert after == replace(was, in_force=in_force, walked=order)


def test_of_a_state_that_knows_of_no_walks_all_that_was_known_has_walked() -> None:
    was = SeriesMemory()
    assert after_pass(was, None, 7, 9, walked=False, settled=False) == replace(was, walked=7)
    assert after_pass(was, TWO, 7, 9, walked=False, settled=False) == replace(was, in_force=TWO, walked=9)


# --- what could not go


def test_what_was_asked_for_and_could_not_go_is_forgotten_if_k_is_raised_again() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.pinned = {"epoch_4.pth"}
    assert directory.prune(1) == [4, 7]
    assert directory.decision_on(4, max_keep=1) == SKIP
    directory.prune(4)
    directory.pinned = set()
    assert directory.decision_on(4, max_keep=4) == KEEP


def test_what_was_asked_for_and_could_not_go_goes_when_it_can() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.pinned = {"epoch_4.pth"}
    directory.prune(1)
    directory.pinned = set()
    assert directory.plan(Policy(max_keep=1, interval=1)).goes_late
    assert directory.prune(1) == [7]
    assert directory.memory.series[EPOCHS.text].late == ()


def test_what_a_save_has_walked_over_stays_owed_when_k_is_raised() -> None:
    directory = ran(*range(1, 8), max_keep=5)
    directory.pinned = {"epoch_4.pth"}
    directory.save(8)
    directory.prune(1)
    directory.prune(4)
    directory.pinned = set()
    for step in (9, 10, 11, 12):
        directory.save(step)
        directory.prune(4)
    assert directory.steps() == [9, 10, 11, 12]


# --- golden cases


@pytest.mark.parametrize("ends", [False, True], ids=["while they may go on", "the empty ones included"])
def test_restarts_under_the_new_k_before_the_first_save_leave_what_the_hook_left(ends: bool) -> None:
    """Also of segments without a save."""
    compared = 0
    for case in CASES:
        directory = Directory(case["pre"], ended=False)
        if case["pre"]:
            directory.reconcile(replace(policy_of(case["segments"][0]), max_keep=None))
        for segment in case["segments"]:
            if segment["events"] or ends:
                directory.reconcile(policy_of(segment))
            for each in happenings({"segments": [segment]}):
                if isinstance(each, Outside):
                    directory.change(each)
                    continue
                directory.write(each.name)
                owed = directory.owed(each.policy)
                assert each.files | owed == set(directory.written), (case["id"], each.step)
                compared += 1
    assert compared == 2449


@pytest.mark.parametrize("missed", [0.3, 0.9])
def test_between_two_changes_of_policy_any_passes_may_be_missed(missed: float) -> None:
    """Confluence, where `prune` stands at the beginning of every segment and takes its policy for a changed one."""
    for case in CASES:
        rng = random.Random(case["id"])
        each_seen, some_seen = Directory(case["pre"]), Directory(case["pre"])
        for segment in case["segments"]:
            for directory in (each_seen, some_seen):
                directory.reconcile(policy_of(segment))
            for each in happenings({"segments": [segment]}):
                for directory in (each_seen, some_seen):
                    if isinstance(each, Outside):
                        directory.change(each)
                    else:
                        directory.write(each.name)
                        if directory is each_seen or each.last or rng.random() >= missed:
                            directory.reconcile(each.policy)
            assert set(each_seen.written) == set(some_seen.written), case["id"]


# --- saves, looks and changes of K in any order


@dataclass
class Oracle:
    """What is left of one series at a given interval, told as a person would: lists and sets, no orders or memory."""

    interval: int
    files: list[int] = field(default_factory=list)  # in order of writing
    unseen: list[int] = field(default_factory=list)
    unwalked: list[int] = field(default_factory=list)  # seen while no K was in force
    owed: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    known: set[int] = field(default_factory=set)  # since the last pass, written over or not
    max_keep: int | None = None
    is_met: bool = False
    never_walked: bool = True
    waits: bool = False

    def save(self, step: int) -> None:
        self.delete(step)
        self.files.append(step)
        self.unseen.append(step)

    def delete(self, step: int) -> None:
        for those in (self.files, self.unseen, self.unwalked):
            if step in those:
                those.remove(step)
        self.owed.discard(step)
        self.late.discard(step)

    def look(self) -> None:
        if self.is_doubtful():
            self.waits, self.never_walked = True, False
        elif self.unseen:
            self.unwalked += self.unseen
            self.waits = False
        self.is_met = self.is_met or bool(self.files)
        self.unseen, self.known = [], set(self.files) - self.owed

    def prune(self, max_keep: int, *, ended: bool = True) -> None:
        before, self.max_keep = self.max_keep, max_keep
        waits = False
        if before is not None and max_keep > before:
            self.owed -= self.late
            self.late = set()
        if self.is_doubtful():
            self.waits = True
        elif self.unseen:
            self.waits = False
            self.walk(*self.unseen)
        elif self.unwalked:
            waits = not ended and not (self.never_walked and self.unwalked != sorted(self.unwalked))
            if ended and not (self.never_walked and self.unwalked != sorted(self.unwalked)):
                self.late |= self.walk(*self.unwalked)
        elif before is not None and max_keep < before and not self.waits and self.files:
            waits = not ended
            self.late |= self.walk(*self.files[-1:]) if ended else set()
        self.is_met = self.is_met or bool(self.files)
        self.unseen = []
        if waits:
            self.max_keep = before
        else:
            self.unwalked, self.never_walked = [], self.never_walked and not self.is_met
        for step in self.owed - set(self.files[-max_keep:]):
            self.delete(step)
        self.known = set(self.files) - self.owed

    def is_doubtful(self) -> bool:
        return not self.is_met and self.unseen != sorted(self.unseen)

    def walk(self, *saves: int) -> set[int]:
        """Each over what was there before it."""
        assert self.max_keep is not None
        there = (set(self.files) - set(saves) - self.owed) | (self.known & set(self.unseen))
        gone = set()
        for save in saves:
            there.add(save)
            gone.discard(save)  # an earlier one has walked over what bore that name before
            step = save - self.max_keep * self.interval
            while step > 0 and step in there:
                there.discard(step)
                gone.add(step)
                step -= self.interval
        self.owed |= gone
        return gone


@pytest.mark.parametrize("seed", range(40))
def test_saves_looks_and_changes_of_k_in_any_order_leave_what_the_law_says(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        interval = rng.choice([1, 1, 2, 3])
        directory, oracle, step, did = Directory(), Oracle(interval), 0, []
        for _ in range(rng.randint(3, 30)):
            what = rng.choice(["save", "save", "save", "look", "prune", "prune", "watch", "lower", "delete", "resume"])
            if what == "resume" and oracle.files:
                step = rng.choice(oracle.files)
            elif what == "save":
                step += rng.choice([interval, interval, interval, 1, 2])
                directory.save(step)
                oracle.save(step)
            elif what == "delete" and oracle.files:
                gone = rng.choice(oracle.files)
                del directory.written[EPOCHS.name_of(gone)]
                oracle.delete(gone)
            elif what == "look":
                directory.plan(Policy(max_keep=rng.randint(1, 5), interval=interval))
                directory.prune(None, interval)
                oracle.look()
            elif what in ("prune", "watch", "lower"):
                keep = rng.randint(1, 6) if what != "lower" else max(1, (oracle.max_keep or 4) - 1)
                directory.ended = what != "watch"
                directory.prune(keep, interval)
                oracle.prune(keep, ended=directory.ended)
                what = f"{what} {keep}"
            did.append(f"{what} {step}" if what == "save" else what)
            assert sorted(oracle.files) == directory.steps(), f"{interval} {did}"
