"""At once first, then at a bounded rate: the laws of a pace, tried on a loop that does what it is asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.pace import Pace

SHARE, BURST_S, MOST_S = 0.1, 0.5, 0.04
_NOISE_S = 1e-6

# From one that is asked for to the next: at once, in a storm, after a calm. And what it takes to do it.
gaps_s = st.one_of(st.just(0.0), st.floats(0.0, 0.02), st.floats(0.0, 20.0))
took_s = st.one_of(st.floats(0.0, 0.004), st.floats(0.0, 0.3))
askings = st.lists(st.tuples(gaps_s, took_s), min_size=1, max_size=200)
storms = st.tuples(st.lists(st.just(0.0), min_size=50, max_size=400), took_s).map(
    lambda storm: [(gap_s, storm[1]) for gap_s in storm[0]]
)


@dataclass(frozen=True)
class Done:
    """One that was done, and when it was first asked for."""

    asked_s: float
    began_s: float
    ended_s: float


def served(asked: list[tuple[float, float]]) -> list[Done]:
    """What a loop does that is asked at these times: one at a time, and one for all that ask meanwhile."""
    pace, done, now_s = Pace(SHARE, BURST_S, MOST_S), [], 1000.0
    times_s = [now_s := now_s + gap_s for gap_s, _ in asked]
    free_s = 0.0
    while times_s:
        asked_s = times_s[0]
        began_s = pace.due_s(max(asked_s, free_s))
        took_s = asked[len(done)][1]
        free_s = began_s + took_s
        pace.done(free_s, took_s)
        done.append(Done(asked_s, began_s, free_s))
        times_s = [time_s for time_s in times_s if time_s > began_s]
    return done


@given(askings)
def test_after_each_that_asks_it_is_done_and_none_waits_longer_than_the_most(asked: list[tuple[float, float]]) -> None:
    now_s, ended_s = 1000.0, 0.0
    done = served(asked)
    for gap_s, _ in asked:
        now_s += gap_s
        ended_s = max((each.ended_s for each in done if each.began_s < now_s), default=0.0)
        next_ = next(each for each in done if each.began_s >= now_s)
        assert next_.began_s <= max(now_s, ended_s) + MOST_S + _NOISE_S


@given(st.one_of(askings, storms))
def test_it_takes_no_more_than_its_share_and_the_burst_where_none_had_to_wait_for_the_longest(
    asked: list[tuple[float, float]],
) -> None:
    done = served(asked)
    for first in range(0, len(done), 7):
        spent_s = 0.0
        for each, next_ in itertools.pairwise(done[first:]):
            spent_s += each.ended_s - each.began_s
            if next_.began_s - each.ended_s >= MOST_S - _NOISE_S:
                break
            assert spent_s <= BURST_S + SHARE * (next_.began_s - done[first].began_s) + _NOISE_S


@given(st.floats(0.0, 0.3), st.integers(50, 400))
def test_in_a_storm_that_goes_on_it_is_spaced(took_s: float, count: int) -> None:
    done = served([(0.0, took_s)] + [(took_s + 1e-4, took_s)] * count)
    waited = [next_.began_s - each.ended_s for each, next_ in itertools.pairwise(done)]
    after_s = 1000.0 + 2 * BURST_S + took_s
    late = [wait_s for each, wait_s in zip(done, waited, strict=False) if each.began_s > after_s]
    least_s = min(MOST_S, took_s / SHARE - took_s)
    assert all(wait_s >= least_s - 2e-4 for wait_s in late)


@given(askings)
def test_after_a_calm_it_is_done_at_once(asked: list[tuple[float, float]]) -> None:
    pace = Pace(SHARE, BURST_S, MOST_S)
    now_s = 1000.0
    for gap_s, took_s in asked:
        now_s = pace.due_s(now_s + gap_s) + took_s
        pace.done(now_s, took_s)
    assert pace.due_s(now_s + MOST_S) == now_s + MOST_S
    calm_s = now_s + MOST_S + BURST_S / SHARE
    for _ in range(int(BURST_S / 0.004)):  # many short ones, one right after another
        assert pace.due_s(calm_s) == calm_s
        calm_s += 0.004
        pace.done(calm_s, 0.004)


def test_the_first_is_done_at_once() -> None:
    assert Pace(SHARE, BURST_S, MOST_S).due_s(0.0) == 0.0
