"""Killed at every call that changes the disk: the promises hold then, and a restart ends as if nothing had been."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import a_pass, torch_zip
from tests.root.scene import End, Scene, broken_promises
from tests.root.strace import MUTATING, Call, Strace, none, steady

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SCENES = [Scene(shards, met) for shards in (False, True) for met in (False, True)]
SCENES += [Scene(False, met, "none") for met in (False, True)]
TOGETHER = [
    Scene(False, True, together="G_{}.pth + D_{}.pth"),
    Scene(False, False, together="a{}.pt + b{}.pt + c{}.pt"),
]
SCENES += TOGETHER
KILL = "signal=SIGKILL"
TRACE = [*MUTATING, "openat"]


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_pass_killed_at_any_call_leaves_the_promises_and_a_restart_the_same_end(
    scene: Scene, strace: Strace, places: Iterator[Path]
) -> None:
    work_dir = scene.built(next(places))
    calls, end = undisturbed(scene, work_dir, strace)

    def killed(case: tuple[Call, Path]) -> list[str]:
        call, work_dir = case
        scene.built(work_dir)
        ran = strace.run("prune", work_dir, *scene.options, work_dir=work_dir, e=[call.with_(KILL)], trace=[call.name])
        assert ran.code == -signal.SIGKILL, (call, ran)
        assert steady(ran.calls[-1].text) == steady(call.text), (call, ran.calls[-1])
        broken = broken_promises(work_dir, scene)
        a_pass(work_dir, **scene.policy)
        broken += [f"the restart {each}" for each in End.of(work_dir, scene).unlike(end)]
        return [f"killed at {call.name} {call.at} {steady(call.text)}: {each}" for each in broken]

    none(strace.each(killed, [(call, next(places)) for call in calls]))


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_restart_that_is_killed_too_is_finished_by_the_next(
    scene: Scene, strace: Strace, places: Iterator[Path]
) -> None:
    calls, end = undisturbed(scene, scene.built(next(places)), strace)
    into_trash = next(call for call in calls if call.name == "renameat2" and "/.ckptd/trash" in call.text)
    after = calls[calls.index(into_trash) + 1]  # renamed, and not yet written down: the most there is to find out

    def left(work_dir: Path) -> Path:
        scene.built(work_dir)
        ran = strace.run(
            "prune", work_dir, *scene.options, work_dir=work_dir, e=[after.with_(KILL)], trace=[after.name]
        )
        assert ran.code == -signal.SIGKILL
        return work_dir

    work_dir = left(next(places))
    again = strace.run("prune", work_dir, *scene.options, work_dir=work_dir, trace=TRACE)
    assert (again.code, End.of(work_dir, scene)) == (0, end)

    def killed(case: tuple[Call, Path]) -> list[str]:
        call, work_dir = case
        left(work_dir)
        ran = strace.run("prune", work_dir, *scene.options, work_dir=work_dir, e=[call.with_(KILL)], trace=[call.name])
        assert ran.code == -signal.SIGKILL, (call, ran)
        broken = broken_promises(work_dir, scene)
        a_pass(work_dir, **scene.policy)
        broken += [f"the restart {each}" for each in End.of(work_dir, scene).unlike(end)]
        return [f"killed at {call.name} {call.at} {steady(call.text)}: {each}" for each in broken]

    none(strace.each(killed, [(call, next(places)) for call in again.calls if call.mutates]))


def test_a_checkpoint_written_again_at_any_call_before_its_deletion_is_not_deleted(
    strace: Strace, places: Iterator[Path]
) -> None:
    scene = Scene(shards=False, met=True)
    calls, _ = undisturbed(scene, scene.built(next(places)), strace)
    going = next(at for at, call in enumerate(calls) if '"epoch_1.pth"' in call.text)
    again = torch_zip(b"again" * 500)

    def rewritten(case: tuple[Call, Path]) -> list[str]:
        call, work_dir = case
        scene.built(work_dir)
        e = [f"trace={call.name}", call.with_("signal=SIGSTOP")]
        with strace.running("prune", work_dir, *scene.options, e=e) as ckptd:
            ckptd.stopped()
            (work_dir / "epoch_1.pth").write_bytes(again)  # the same inode: only its size and time tell
            os.kill(ckptd.pid, signal.SIGCONT)
            ckptd.wait()
        there = work_dir / "epoch_1.pth"
        kept = there.exists() and there.read_bytes() == again
        return [] if kept else [f"written again at {steady(call.text)}, and deleted: {ckptd.said()}"]

    none(strace.each(rewritten, [(call, next(places)) for call in calls[:going]]))


@pytest.mark.parametrize("scene", TOGETHER, ids=str)
def test_files_that_are_one_checkpoint_are_all_back_or_all_gone_after_a_start_that_prunes_nothing(
    scene: Scene, strace: Strace, places: Iterator[Path]
) -> None:
    calls, _ = undisturbed(scene, scene.built(next(places)), strace)

    def killed(case: tuple[Call, Path]) -> list[str]:
        call, work_dir = case
        scene.built(work_dir)
        strace.run("prune", work_dir, *scene.options, work_dir=work_dir, e=[call.with_(KILL)], trace=[call.name])
        a_pass(work_dir, templates=(scene.together,), trash_ttl_s=3600.0)
        there = [name for name in scene.all if scene.found(work_dir, name) is not None]
        at = f"killed at {call.name} {call.at} {steady(call.text)}"
        return [] if there == scene.whole(work_dir) else [f"{at}: of {there} only {scene.whole(work_dir)} are whole"]

    none(strace.each(killed, [(call, next(places)) for call in calls]))


def undisturbed(scene: Scene, work_dir: Path, strace: Strace) -> tuple[list[Call], End]:
    """The calls of a pass that change something, and what it comes to."""
    ran = strace.run("prune", work_dir, *scene.options, work_dir=work_dir, trace=TRACE)
    end = End.of(work_dir, scene)
    assert (ran.code, end.whole, end.pointed, end.journal, end.trash) == (0, scene.kept, scene.new, scene.pruned, [])
    calls = [call for call in ran.calls if call.mutates]
    assert {"fsync", "renameat", "renameat2", "unlinkat", "write", "openat"} <= {call.name for call in calls}
    return calls, end
