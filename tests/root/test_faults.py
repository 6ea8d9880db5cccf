"""Every system call of a pass that names the work dir fails, one at a time: nothing is lost, it is said, and it passes.

All faults are swept over files on first contact, which makes nearly every call there is. Of the pass over directories,
and of a later one, those calls are tried that the first does not make, with half of the faults: the others are handled
by the same lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import a_pass, eventually
from tests.root.scene import KEEP, OPTIONS, POLICY, End, Scene, broken_promises, pointed
from tests.root.strace import LOOKING, MUTATING, Call, Ran, Strace, none, steady

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FAULTS = ("ENOSPC", "EIO", "EACCES", "EROFS", "ESTALE", "EMFILE")
FEWER = ("ENOSPC", "EIO", "EACCES")
CODES = {0, 1, 3, 4, 5}  # docs/design.md, section 10: those that a pass can end with
TRACE = sorted((MUTATING | LOOKING) - {"lseek", "fcntl"})
NFS = (0x6969).to_bytes(8, "little").hex()
FILES, DIRECTORIES, LATER = Scene(False, False), Scene(True, False), Scene(False, True)  # shards, met
PAIRS = Scene(False, True, together="G_{}.pth + D_{}.pth")
CONTENT = r"p?read(64)?\(</epoch_"
ASIDE = rf"(?!{CONTENT})"
LOOK_INSIDE = r"(newfstatat|getdents64|openat)\(</epoch_\d>"
INSIDE = rf"(?!{LOOK_INSIDE}).*(epoch_\d[/>]|/trash/|fsync)"
TRASH = r".*(trash|fsync)"
OURS = r".*(state\.json|last_ckpt|journal|trash|schedules)"


@pytest.mark.parametrize(
    ("scene", "which", "fault"),
    [
        *(pytest.param(FILES, ASIDE, fault, id=f"{fault} on first contact") for fault in FAULTS),
        *(pytest.param(FILES, CONTENT, fault, id=f"{fault} in a file") for fault in FEWER),
        *(pytest.param(DIRECTORIES, LOOK_INSIDE, fault, id=f"{fault} of a look into a directory") for fault in FEWER),
        *(pytest.param(DIRECTORIES, INSIDE, fault, id=f"{fault} in a directory") for fault in FEWER),
        *(pytest.param(LATER, OURS, fault, id=f"{fault} in a later pass") for fault in FEWER),
        *(pytest.param(PAIRS, TRASH, fault, id=f"{fault} where two files go together") for fault in FEWER),
    ],
)
def test_a_pass_with_a_failing_call_loses_nothing_says_so_and_the_next_recovers(
    scene: Scene, which: str, fault: str, strace: Strace, places: Iterator[Path]
) -> None:
    calls, end = undisturbed(scene, next(places), strace)
    calls = [call for call in calls if re.match(which, steady(call.text))]
    assert len(calls) >= 20

    def failing(case: tuple[Call, Path]) -> list[str]:
        call, work_dir = case
        scene.built(work_dir)
        ran = disturbed(work_dir, call, f"error={fault}", strace, scene.options)
        broken = [*wrong_with(ran), *broken_promises(work_dir, scene, newest="")]
        if call.name == "fsync" and re.match(r"fsync\(</epoch_", steady(call.text)):
            broken += relied_on_in_vain(work_dir, scene, steady(call.text))
        a_pass(work_dir, **scene.policy)
        # What nobody may read is left alone, and said; once it may be read it has been found later than the others.
        if not (fault == "EACCES" and "could not read" in str(ran.said)):
            wrong = wrong_end(End.of(work_dir, scene), end, call, fault, ran, scene)
            broken += [f"the next pass {each}" for each in wrong]
        return [f"{fault} of {call.name} {call.at} {steady(call.text)}: {each}; {ran.said!r}" for each in broken]

    none(strace.each(failing, [(call, next(places)) for call in calls]))


@pytest.mark.parametrize("fault", ["EAGAIN", "EACCES"])
def test_a_lease_that_is_refused_loses_nothing(fault: str, strace: Strace, places: Iterator[Path]) -> None:
    calls, end = undisturbed(FILES, next(places), strace, trace=["fcntl"])
    leases = [call for call in calls if "F_SETLEASE, F_RDLCK" in call.text]
    assert len(leases) >= len(FILES.all)

    def refused(case: tuple[Call, Path]) -> list[str]:
        call, work_dir = case
        FILES.built(work_dir)
        ran = disturbed(work_dir, call, f"error={fault}", strace)
        broken = [*wrong_with(ran), *broken_promises(work_dir, FILES, newest="")]
        a_pass(work_dir, **POLICY)
        broken += [f"the next pass {each}" for each in End.of(work_dir, FILES).unlike(end)]
        return [f"{fault} of lease {call.at} on {steady(call.text)}: {each}" for each in broken]

    none(strace.each(refused, [(call, next(places)) for call in leases]))


def test_on_nfs_no_lease_is_asked_for_and_nothing_fresh_is_relied_on(strace: Strace, places: Iterator[Path]) -> None:
    def on_nfs(work_dir: Path) -> Ran:
        e = [f"inject=fstatfs:poke_exit=@arg2={NFS}"]
        return strace.run("prune", work_dir, *OPTIONS, work_dir=work_dir, e=e, trace=["fstatfs", "fcntl", "renameat"])

    work_dir = FILES.built(next(places))
    ran = on_nfs(work_dir)
    assert any("NFS_SUPER_MAGIC" in call.text for call in ran.calls), ran
    assert not any("F_SETLEASE" in call.text for call in ran.calls)
    assert (ran.code, FILES.whole(work_dir), pointed(work_dir)) == (0, FILES.kept, FILES.new)
    fresh = FILES.built(next(places))
    os.utime(fresh / FILES.new)  # written just now: on a network nobody can tell whether its writer is done
    ran = on_nfs(fresh)
    assert (ran.code, FILES.whole(fresh), pointed(fresh)) == (0, [*FILES.old[1:], FILES.new], FILES.old[-1])


@pytest.mark.parametrize("call", ["renameat", "renameat2", "getdents64", "openat"])
def test_a_watch_under_a_lasting_fault_backs_off_says_it_once_and_recovers(
    call: str, strace: Strace, places: Iterator[Path]
) -> None:
    scene = Scene(shards=False, met=True)
    work_dir = next(places)
    scene.begin(work_dir)
    with strace.running("watch", work_dir, *OPTIONS, one_thread=False) as watch:
        eventually(watch.said, what="its first line")
        watch.detach()
        watch.attach([f"trace={call}", f"inject={call}:error=EIO"])
        scene.save(work_dir, scene.new)
        # One that went on at full speed would make one burst of failures without end.
        eventually(lambda: len(bursts(watch.log)) >= 3, what="a third try")
        watch.detach()
        eventually(lambda: (scene.whole(work_dir), pointed(work_dir)) == (scene.kept, scene.new), what="recovery")
        failures = [line for line in watch.said().splitlines() if "Input/output error" in line]
        assert watch.stop() == 0
    assert failures
    assert len(failures) == len(set(failures)), failures
    assert max(bursts(watch.log)) < 50


def undisturbed(scene: Scene, work_dir: Path, strace: Strace, trace: list[str] = TRACE) -> tuple[list[Call], End]:
    """The calls of a pass that name the work dir, and what it comes to."""
    scene.built(work_dir)
    ran = strace.run("prune", work_dir, *scene.options, work_dir=work_dir, trace=trace)
    end = End.of(work_dir, scene)
    assert (ran.code, end.whole, end.pointed, end.journal, end.trash) == (0, scene.kept, scene.new, scene.pruned, [])
    return ran.calls, end


def disturbed(work_dir: Path, call: Call, what: str, strace: Strace, options: tuple[str, ...] = OPTIONS) -> Ran:
    """A pass in which one call goes wrong."""
    e = [call.with_(what)]
    ran = strace.run("prune", work_dir, *options, work_dir=work_dir, e=e, trace=[call.name])
    assert len(ran.injected) == 1, (call, ran)
    hit = next((each for each in ran.calls if each.at == call.at), None)
    assert hit is not None, (call, ran)
    assert steady(hit.text) == steady(call.text), (call, hit)
    return ran


def bursts(log: Path) -> list[int]:
    """How many calls were failed in a row, each time that it had been quiet for half a second."""
    found: list[int] = []
    before_s = 0.0
    for line in log.read_text().splitlines():
        if line.endswith("(INJECTED)"):
            at_s = float(line.split()[0])
            if at_s - before_s > 0.5:
                found.append(0)
            found[-1] += 1
            before_s = at_s
    return found


def wrong_with(ran: Ran) -> list[str]:
    """What nobody should ever see of a pass that something went wrong in."""
    wrong = ["a traceback"] if "Traceback" in ran.said or "a bug in ckptd" in ran.said else []
    wrong += [f"exit code {ran.code}"] if ran.code not in CODES else []
    said = [line for line in ran.said.splitlines() if line.startswith(("error: ", "warning: "))]
    return [*wrong, *(["it failed, and did not say why"] if ran.code and not said else [])]


def relied_on_in_vain(work_dir: Path, scene: Scene, text: str) -> list[str]:
    """What was done on the strength of a checkpoint whose fsync had failed."""
    failed = re.search(r"epoch_\d(\.pth)?", text)[0]
    others = [name for name in scene.whole(work_dir) if name != failed]
    wrong = [f"only {others} are left beside {failed}, which is not durable"] if len(others) < KEEP else []
    return [*wrong, *([f"the pointer names {failed}, which is not durable"] if pointed(work_dir) == failed else [])]


def wrong_end(now: End, end: End, call: Call, fault: str, ran: Ran, scene: Scene) -> list[str]:
    """What is wrong with the end of the pass after the one that went wrong."""
    if fault == "ENOSPC" and "too full for a trash" in ran.said:
        return replace(now, journal=end.journal, memory=end.memory).unlike(end)  # and so for a journal and a state
    if not (scene.shards or scene.together) or (ran.code == 0 and call.name != "fsync"):
        return now.unlike(end)
    # A directory that could not be read was a hole, and what lies below a hole stays. One whose fsync has failed, or
    # one of several files, is not relied on again, for it may hold no checksum that could be read back.
    wrong = [f"lost {name}" for name in end.whole if name not in now.whole]
    wrong += [f"left {now.trash} in the trash"] if now.trash else []
    return [*wrong, *([f"pointed at {now.pointed}"] if call.name != "fsync" and now.pointed != end.pointed else [])]
