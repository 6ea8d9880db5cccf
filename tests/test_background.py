"""The threads that passes and slow work run in: bounded, in order, and apart from those whose disk does not answer."""

from __future__ import annotations

import threading

from ckptd.background import Background


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
