"""The threads that passes and slow work run in: bounded, in order, and apart from those whose disk does not answer."""

from __future__ import annotations

import threading

from ckptd.passes.background import Background

from .conftest import eventually


def test_a_disk_that_hangs_holds_up_no_other() -> None:
    background, answers, done = Background(2, most=5), threading.Event(), threading.Event()
    for number in range(50):
        background.submit(f"slow {number}", lambda: answers.wait() and None, device=1)
    before = threading.active_count()
    background.submit("fast", done.set, device=2)
    assert done.wait(10)
    assert threading.active_count() <= before + 1, "of the slow ones no more than two may run"
    answers.set()
    assert background.close(10)


def test_there_are_never_more_threads_than_the_most_however_many_disks() -> None:
    background, answers = Background(2, most=5), threading.Event()
    before = threading.active_count()
    for number in range(50):
        background.submit(f"slow {number}", lambda: answers.wait() and None, device=number)
    assert threading.active_count() == before + 5
    answers.set()
    assert background.close(10)


def test_a_key_whose_disk_has_changed_keeps_the_order_of_its_jobs() -> None:
    background, answers, ran = Background(2), threading.Event(), list[str]()
    for number in range(2):
        background.submit(f"slow {number}", lambda: answers.wait() and None, device=1)
    background.submit("key", lambda: ran.append("first"), device=1)
    background.submit("key", lambda: ran.append("second"), device=0)
    background.submit("other", lambda: ran.append("other"), device=0)
    eventually(lambda: ran == ["other"])
    answers.set()
    assert background.close(10)
    assert ran == ["other", "first", "second"]


def test_what_hangs_at_the_end_is_waited_for_together() -> None:
    background, answers = Background(2, most=16), threading.Event()
    for number in range(16):
        background.submit(f"slow {number}", lambda: answers.wait() and None, device=number)
    began = threading.Thread(target=background.close, args=(0.01,))
    began.start()
    began.join(8)  # of sixteen seconds, one for each
    assert not began.is_alive()
    answers.set()


def test_jobs_of_one_key_run_one_after_another_in_their_order() -> None:
    background, ran, at_once, most = Background(4), list[int](), [0], [0]
    lock = threading.Lock()

    def job(number: int) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(*most, *at_once)
        ran.append(number)
        with lock:
            at_once[0] -= 1

    for number in range(200):
        background.submit("one", lambda number=number: job(number), device=number % 3)
    assert background.close(10)
    assert (ran, most) == (list(range(200)), [1])
