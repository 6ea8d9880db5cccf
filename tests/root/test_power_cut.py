"""The power cut after every call of a pass that changes the disk: what is left is enough, and a restart ends right."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import a_pass
from tests.root.disks import Disk, Plugged, can_mount
from tests.root.scene import KEEP, OPTIONS, End, Scene, is_kept, pointed
from tests.root.strace import MUTATING, Call, Strace, needs, none, steady

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

KINDS = {"ext4": ("ext4", "rw"), "ext4, noauto_da_alloc": ("ext4", "noauto_da_alloc"), "xfs": ("xfs", "nouuid")}
TRACE = [*MUTATING, "openat"]


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strace]:
    needs("strace", "mkfs.ext4", "mount")
    why_not = can_mount(tmp_path_factory.mktemp("try"))
    if why_not:
        pytest.skip(why_not)
    strace = Strace(tmp_path_factory.mktemp("traces"))
    yield strace
    strace.close()


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, strace: Strace) -> Disk:
    kind, options = KINDS[request.param]
    needs(f"mkfs.{kind}")
    return Disk(kind, options, tmp_path_factory.mktemp("disks") / kind)


# Of the scenes, those that differ most: the others repeat their calls, and test_crash walks through all.
PAIRS = Scene(shards=False, met=True, together="G_{}.pth + D_{}.pth")


@pytest.mark.parametrize("scene", [Scene(shards=False, met=True), Scene(shards=True, met=False), PAIRS], ids=str)
def test_a_power_cut_at_any_call_of_a_pass_leaves_enough_and_a_restart_ends_right(
    scene: Scene, disk: Disk, strace: Strace
) -> None:
    with disk.fresh() as plugged:
        work_dir = saved(scene, plugged)
        ran = strace.run("prune", work_dir, *scene.options, work_dir=work_dir, trace=TRACE)
        assert (ran.code, scene.whole(work_dir)) == (0, scene.kept)
    moments = [*(call for call in ran.calls if call.mutates), None]  # None: after the whole pass
    assert len(moments) > 25

    def cut(case: tuple[Call | None, bool]) -> list[str]:
        call, neighbour = case
        with disk.fresh() as plugged:
            work_dir = saved(scene, plugged)
            run_until(call, work_dir, strace, scene.options)
            if neighbour:
                plugged.neighbour_syncs()
            plugged.cut_power()
            broken = [*lost(work_dir, scene), *wrong_after_restart(work_dir, scene)]
        before = f"{call.name} {call.at} {steady(call.text)}" if call else "the end"
        return [f"cut before {before}{', a neighbour having synced' if neighbour else ''}: {each}" for each in broken]

    none(strace.each(cut, list(itertools.product(moments, (False, True)))))


@pytest.mark.parametrize("shards", [False, True], ids=["files", "directories"])
def test_the_order_of_a_plain_hook_loses_what_this_check_would_find(shards: bool, disk: Disk) -> None:
    scene = Scene(shards, met=True)
    with disk.fresh() as plugged:
        work_dir = saved(scene, plugged)
        oldest = work_dir / scene.old[0]
        if shards:
            shutil.rmtree(oldest)
        else:
            oldest.unlink()
        plugged.neighbour_syncs()
        plugged.cut_power()
        assert lost(work_dir, scene) == [f"only {scene.old[1:]} are whole"]


def test_what_a_pass_relies_on_is_synced_before_what_relies_on_it(strace: Strace, tmp_path: Path) -> None:
    # File systems that commit all with any fsync hide a missing one; the next to come need not.
    scene = Scene(shards=False, met=False)
    work_dir = scene.built(tmp_path / "run")
    ran = strace.run("prune", work_dir, *OPTIONS, work_dir=work_dir, trace=TRACE)
    done = [steady(call.text) for call in ran.calls]

    def at(text: str, *, after: int = -1) -> int:
        return next(number for number, each in enumerate(done) if number > after and each.startswith(text))

    into_trash = at('renameat2(<>, "epoch_1.pth", </.ckptd/trash>')
    pointer = at('renameat(<>, ".last_ckpt.ckptd-tmp", <>, "last_ckpt"')
    met = at('renameat(</.ckptd>, ".state.json.ckptd-tmp"')  # so that the pointer is known as ours
    state = at('renameat(</.ckptd>, ".state.json.ckptd-tmp"', after=pointer)
    checkpoints = [at(f"fsync(</{name}>") for name in scene.kept]
    own_dir = at('mkdirat(</.ckptd>, "trash"')
    assert (
        [own_dir]
        < checkpoints
        < [at("fsync(<>", after=max(checkpoints))]
        < [at("fsync(</.ckptd/.state.json.ckptd-tmp>")]
        < [met]
        < [at("fsync(</.ckptd>", after=met)]
        < [at("fsync(</.last_ckpt.ckptd-tmp>")]
        < [pointer]
        < [at("fsync(<>", after=pointer)]
        < [at("fsync(</.ckptd/.state.json.ckptd-tmp>", after=pointer)]
        < [state]
        < [at("fsync(</.ckptd>", after=state)]
        < [into_trash]
        < [at("fsync(</.ckptd/trash>", after=into_trash)]
        < [at("fsync(<>", after=into_trash)]
        < [at("fsync(</.ckptd/journal.jsonl>", after=into_trash)]
        < [at("unlinkat(</.ckptd/trash>")]
    )


def saved(scene: Scene, plugged: Plugged) -> Path:
    """A run whose old checkpoints are on the disk, and whose new one has just been written, as torch.save does it."""
    work_dir = plugged.path / "run"
    scene.begin(work_dir)
    plugged.sync()
    scene.save(work_dir, scene.new)
    return work_dir


def run_until(call: Call | None, work_dir: Path, strace: Strace, options: tuple[str, ...]) -> None:
    """Make a pass that is killed just before a call, or a whole one."""
    e, trace = ([call.with_("signal=SIGKILL")], [call.name]) if call else ([], TRACE)
    ran = strace.run("prune", work_dir, *options, work_dir=work_dir, e=e, trace=trace)
    assert ran.code == (-signal.SIGKILL if call else 0), (call, ran)
    assert call is None or steady(ran.calls[-1].text) == steady(call.text), (call, ran.calls[-1])


def lost(work_dir: Path, scene: Scene) -> list[str]:
    """What of the promises (docs/design.md, section 1) does not hold after a power cut."""
    whole, target = scene.whole(work_dir), pointed(work_dir)
    broken = [f"only {whole} are whole"] if len(whole) < min(KEEP, len(scene.old)) else []
    broken += [f"the pointer names {target}, which is not whole"] if target and target not in whole else []
    broken += ["the pointer is gone"] if scene.met and target is None else []
    there = [name for name in scene.old if scene.found(work_dir, name) is not None]
    torn = [name for name in there if name not in whole and not (scene.together and is_kept(work_dir, scene, name))]
    return [*broken, *(f"{name} was durable, and is not whole" for name in torn)]


def wrong_after_restart(work_dir: Path, scene: Scene) -> list[str]:
    """What the run comes to that goes on: it saves again what it has lost, and another pass is made."""
    if scene.new not in scene.whole(work_dir):
        place = work_dir / scene.new
        if place.is_dir():
            shutil.rmtree(place)
        scene.save(work_dir, scene.new, later_s=5)
    a_pass(work_dir, **scene.policy)
    end = End.of(work_dir, scene)
    found = (end.whole, end.pointed, end.trash, end.journal)
    expected = (scene.kept, scene.new, [], scene.pruned)
    return [] if found == expected else [f"the restart ended with {found}, not {expected}"]
