"""The content of a checkpoint is read once before anything relies on it, and what is damaged is never relied on."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.policy import Policy
from ckptd.disk.descriptors import SyncError, opened_dir, sync_file
from ckptd.disk.opened import OpenedDirectory
from ckptd.inspect.content import ChangedError, check_content, fault_of_file
from ckptd.inspect.dcp import missing_shard
from ckptd.inspect.scan import entry_of
from ckptd.passes.background import Background
from ckptd.passes.reading import Reader
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, a_pass, dcp_metadata, epochs, eventually, left, legacy, pointed, safetensors, torch_zip
from .in_memory import Bytes, Files
from .layouts.writers import Run, the


def damaged(weights: bytes = b"w" * 600) -> bytes:
    """A torch zip with zeros in the middle: every check of structure passes, and it loads as wrong weights."""
    whole = torch_zip(weights)
    at = whole.index(weights)
    return whole[: at + 50] + bytes(100) + whole[at + 150 :]


def fault_of(path: Path) -> str:
    with opened_dir(str(path.parent)) as fd:
        return check_content(entry_of(path.name, dir_fd=fd), dir_fd=fd)


def states(report: object) -> dict[str, str]:
    return {d.checkpoint.name: d.checkpoint.state.value for d in report.survey.decisions}  # type: ignore[attr-defined]


def test_a_flipped_bit_anywhere_in_the_weights_is_found(tmp_path: Path) -> None:
    whole, path = torch_zip(), tmp_path / "epoch_1.pth"
    path.write_bytes(whole)
    assert fault_of(path) == ""
    start = whole.index(b"w" * 600)
    for at in range(start, start + 600):
        broken = bytearray(whole)
        broken[at] ^= 1
        assert "damaged" in fault_of_file(Bytes(bytes(broken)), lambda _: None), at
    path.write_bytes(broken)
    assert "damaged" in fault_of(path)


def test_what_passes_with_a_flipped_bit_still_loads_the_same(tmp_path: Path) -> None:
    """Every byte of a real checkpoint, one bit each: what is called whole, torch reads as it was saved."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "epoch_1.pth"
    saved = {"w": torch.arange(40.0), "b": torch.arange(7), "epoch": 3}
    torch.save(saved, path)
    whole, rng, passed = path.read_bytes(), random.Random(0), 0
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        os.utime(path, (1, 1))
        verdict = ckptd.verify(path)
        if verdict.state.whole and verdict.known:
            passed += 1
            loaded = torch.load(path, weights_only=True)
            assert loaded["epoch"] == 3, at
            assert torch.equal(loaded["w"], saved["w"]), at
            assert torch.equal(loaded["b"], saved["b"]), at
    assert passed < len(whole) / 2  # padding, times of members: bytes that nobody reads


def test_a_checkpoint_whose_writer_left_the_checksums_out_is_taken_as_it_is(tmp_path: Path) -> None:
    whole, path = bytearray(torch_zip()), tmp_path / "epoch_1.pth"
    with zipfile.ZipFile(tmp_path / "x", "w") as _:
        pass
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        at = whole.find(signature)
        while at >= 0:
            whole[at + offset : at + offset + 4] = bytes(4)
            at = whole.find(signature, at + 4)
    path.write_bytes(whole)
    assert fault_of(path) == ""


@pytest.mark.parametrize("verify", ["full", "structure"])
def test_a_damaged_newest_is_never_pointed_at_nor_counted(verify: str, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with_checkpoints("epoch_4.pth", content=damaged())
    report = a_pass(work_dir, max_keep=2, interval=1, verify=verify)
    if verify == "structure":  # as asked for, by those who must
        assert (pointed(work_dir), left(work_dir)) == ("epoch_4.pth", epochs(3, 4))
        return
    assert states(report)["epoch_4.pth"] == "incomplete"
    assert pointed(work_dir) == "epoch_3.pth"
    assert {"epoch_2.pth", "epoch_3.pth"} <= set(left(work_dir))
    with_checkpoints(*epochs(5, 6))
    a_pass(work_dir, max_keep=2, interval=1, trash_ttl_s=0)
    assert left(work_dir) == epochs(5, 6)  # two complete ones were written after it


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was read to its end, in that order."""
    names: list[str] = []

    def noting(entry, **more):  # type: ignore[no-untyped-def]
        names.append(entry.name)
        return check_content(entry, **more)

    monkeypatch.setattr("ckptd.passes.reading.check_content", noting)
    return names


def test_a_content_is_read_once_and_not_again_after_a_restart(with_checkpoints: Builder, read: list[str]) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=1, interval=1)
    a_pass(work_dir, max_keep=1, interval=1)
    assert read == ["epoch_3.pth"]
    assert json.loads((work_dir / ".ckptd/state.json").read_text())["seen"]["epoch_3.pth"]["content"] == ""


def written_over(path: Path, content: bytes) -> None:
    """Put `content` into the same inode, under the time that it bore before."""
    info = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_what_is_put_back_over_its_damaged_bytes_counts_again(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with_checkpoints("epoch_3.pth", content=damaged())
    a_pass(work_dir, max_keep=2, interval=1)
    assert pointed(work_dir) == "epoch_2.pth"
    written_over(work_dir / "epoch_3.pth", torch_zip())
    report = a_pass(work_dir, max_keep=2, interval=1)
    assert (states(report)["epoch_3.pth"], pointed(work_dir)) == ("complete", "epoch_3.pth")
    assert ckptd.latest(work_dir) == work_dir / "epoch_3.pth"


def test_what_was_damaged_after_it_was_read_carries_no_deletion(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3, interval=1)
    written_over(work_dir / "epoch_3.pth", damaged())
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert (left(work_dir), pointed(work_dir)) == (["epoch_2.pth", "epoch_3.pth"], "epoch_2.pth")


def test_a_part_that_was_damaged_after_it_was_read_carries_no_deletion(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    names = run.saves((1, 2))
    a_pass(work_dir, max_keep=2)
    written_over(work_dir / names[1] / "optimizer.pt", damaged())
    report = a_pass(work_dir, max_keep=1, trash_ttl_s=0)
    assert states(report) == {names[0]: "complete", names[1]: "incomplete"}
    assert (sorted(path.name for path in work_dir.glob("checkpoint-*")), pointed(work_dir)) == (sorted(names), names[0])


@pytest.mark.parametrize("name", ["epoch_3.pth", "checkpoint-1500"])
@pytest.mark.parametrize("change", ["mode", "link", "way there and back"])
def test_what_changes_no_byte_costs_one_reading_and_makes_no_new_save(
    name: str, change: str, with_checkpoints: Builder, read: list[str]
) -> None:
    work_dir = with_checkpoints(*(epochs(1, 2, 3) if name.endswith(".pth") else ()))
    if not name.endswith(".pth"):
        Run(work_dir, the("transformers")).saves((1, 2, 3))
    a_pass(work_dir, max_keep=3, interval=1)
    before = json.loads((work_dir / ".ckptd/state.json").read_text())
    assert read == [name]
    path = work_dir / name
    part = path if path.is_file() else path / "optimizer.pt"
    if change == "mode":
        part.chmod(0o600)
    elif change == "link":
        os.link(part, work_dir.parent / "backup")
    else:
        part.rename(work_dir.parent / "aside")
        (work_dir.parent / "aside").rename(part)
    a_pass(work_dir, max_keep=3, interval=1)
    a_pass(work_dir, max_keep=3, interval=1)
    assert read == [name, name]
    after = json.loads((work_dir / ".ckptd/state.json").read_text())
    assert after["seen"] == before["seen"]
    assert after["changes"] != before["changes"]


def test_what_an_evaluator_drops_beside_the_parts_costs_no_reading(work_dir: Path, read: list[str]) -> None:
    (name,) = Run(work_dir, the("transformers")).saves((1,))
    a_pass(work_dir, max_keep=1)
    (work_dir / name / "eval_results.json").write_text("{}")
    a_pass(work_dir, max_keep=1)
    assert read == [name]


def test_a_failed_fsync_is_not_made_good_by_a_change_of_mode(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with_checkpoints("epoch_2.pth", content=legacy())  # which nothing can read back
    monkeypatch.setattr("ckptd.passes.reliance.sync_file", failing_once("epoch_2.pth"))
    a_pass(work_dir, max_keep=1, interval=1, settle_s=0)
    (work_dir / "epoch_2.pth").chmod(0o600)
    a_pass(work_dir, max_keep=1, interval=1, settle_s=0)
    assert (left(work_dir), pointed(work_dir)) == (["epoch_1.pth", "epoch_2.pth"], "epoch_1.pth")


def failing_once(name: str) -> Callable[..., None]:
    """An fsync that fails the first time for `name`; later ones say that all is well, as the kernel's do."""
    failed: list[str] = []

    def sync(each: str, *, dir_fd: int) -> None:
        if each == name and not failed:
            failed.append(each)
            raise SyncError(5, "Input/output error")
        sync_file(each, dir_fd=dir_fd)

    return sync


def test_a_plan_names_what_is_still_to_be_read(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    assert ckptd.plan(work_dir, Policy(max_keep=1, interval=1)).unread == set(epochs(1, 2, 3))


KEEP_ONE = Policy(max_keep=1, interval=1)


class Held(Background):
    """A background in which nothing happens until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[str, Callable[[], None], int]] = []

    def submit(self, key: str, job, *, device: int) -> None:  # type: ignore[no-untyped-def]
        self.held.append((key, job, device))

    def go(self) -> None:
        while self.held:
            key, job, device = self.held.pop(0)
            super().submit(key, job, device=device)
        self.wait()


def test_while_a_large_newest_is_being_read_the_pointer_stays_and_older_ones_carry_what_they_can(
    with_checkpoints: Builder,
) -> None:
    large = torch_zip(random.Random(0).randbytes(5 << 20))
    work_dir = with_checkpoints(*epochs(1, 2))
    told: list[str] = []
    background = Held()
    reader = Reader(background, wait=False, on_answer=told.append)
    with WorkDir(work_dir) as work:
        reconciler = Reconciler(work, Policy(max_keep=1, interval=1, trash_ttl_s=0), background, reader=reader)
        reconciler.reconcile()
        assert (pointed(work_dir), left(work_dir)) == ("epoch_2.pth", ["epoch_2.pth"])
        with_checkpoints("epoch_3.pth", content=large)
        report = reconciler.reconcile()
        assert (report.waits, pointed(work_dir), left(work_dir)) == (True, "epoch_2.pth", epochs(2, 3))
        assert ckptd.plan(work_dir, KEEP_ONE).held_back == {"epoch_2.pth": "epoch_3.pth is still to be read"}
        background.go()
        assert told == [str(work_dir)]
        report = reconciler.reconcile()
        assert (report.waits, pointed(work_dir), left(work_dir)) == (False, "epoch_3.pth", ["epoch_3.pth"])
        assert ckptd.plan(work_dir, KEEP_ONE).held_back == {}
        background.go()
    assert background.close()


def test_what_is_written_while_it_is_read_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(torch_zip())
    with opened_dir(str(tmp_path)) as fd:
        entry = entry_of(path.name, dir_fd=fd)
        with pytest.raises(ChangedError):
            check_content(entry, dir_fd=fd, progress=lambda _: os.utime(path, ns=(0, 0)))


# --- directories ------------------------------------------------------------------------------------------------


class Bomb:
    """What a pickle can do to a reader that lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.path),)


def fault_in(path: Path) -> str | None:
    with opened_dir(str(path)) as fd:
        return missing_shard(OpenedDirectory(fd))


def test_nothing_in_a_metadata_can_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"storage_data": Bomb(target)}))
    assert fault_in(tmp_path) == ".metadata is damaged"
    assert not target.exists()
    pickle.loads((tmp_path / ".metadata").read_bytes())
    assert target.exists()  # the bomb was live


@pytest.mark.parametrize(("listed", "expected"), [
    ({"a.distcp": 10}, None),
    ({"a.distcp": 11}, "shard a.distcp has 10 of 11 bytes"),
    ({"b.distcp": 1}, "shard b.distcp is missing"),
    ({"../a.distcp": 1}, ".metadata names '../a.distcp', which is not inside"),
    ({"/etc/passwd": 1}, ".metadata names '/etc/passwd', which is not inside"),
])  # fmt: skip
def test_every_shard_that_metadata_lists_has_its_size(listed: dict[str, int], expected: str) -> None:
    assert missing_shard(Files({"a.distcp": b"s" * 10, ".metadata": dcp_metadata(listed)})) == expected


def test_a_metadata_cut_short_anywhere_is_damaged() -> None:
    whole = dcp_metadata({"a.distcp": 10})
    for length in range(len(whole)):
        found = missing_shard(Files({"a.distcp": b"s" * 10, ".metadata": whole[:length]}))
        assert found == ".metadata is damaged", length


def test_torchs_own_distributed_checkpoint_is_read_as_whole_and_as_broken(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp

    path = tmp_path / "step"
    dcp.save({"model": torch.nn.Linear(4, 4).state_dict(), "steps": 3}, checkpoint_id=path)
    assert fault_in(path) is None
    shard = next(path.glob("*.distcp"))
    os.truncate(shard, shard.stat().st_size - 1)
    assert "bytes" in str(fault_in(path))


def test_a_directory_with_an_index_has_every_shard_that_it_lists(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints()
    for step in (1, 2, 3):
        path = work_dir / f"iter_{step}"
        path.mkdir()
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
        if step != 3:
            (path / "model-1.safetensors").write_bytes(safetensors())
        for inside in path.iterdir():
            with_checkpoints.tick(inside)
    report = a_pass(work_dir, max_keep=1, rule="newest")
    assert states(report) == {"iter_1": "complete", "iter_2": "complete", "iter_3": "incomplete"}
    assert pointed(work_dir) == "iter_2"


def test_a_metadata_that_is_a_symlink_stops_no_pass(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    shards = with_checkpoints.shards("iter_3", whole=False)
    (shards / ".metadata").symlink_to("/dev/zero")
    report = a_pass(work_dir, max_keep=1, interval=1, settle_s=0)
    found = {each.name: each for each in checkpoints(report)}["iter_3"]
    assert (found.state.value, found.evidence[:41]) == ("in doubt", ".metadata is a symlink, which is not foll")
    assert (left(work_dir), pointed(work_dir)) == (["epoch_2.pth", "iter_3"], "epoch_2.pth")


def checkpoints(report: Any) -> list[Any]:
    return [each.checkpoint for each in report.survey.decisions]


def by_trainer(path: Path) -> None:
    """A directory as the Trainer of Transformers leaves it."""
    (path / "sharded_0").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "merges.txt").touch()
    (path / "model.safetensors").write_bytes(safetensors())
    (path / "optimizer.pt").write_bytes(torch_zip())
    (path / "sharded_0/__0_0.distcp").write_bytes(b"s" * 10)
    (path / "sharded_0/.metadata").write_bytes(dcp_metadata({"__0_0.distcp": 10}))
    (path / "trainer_state.json").write_text('{"global_step": 3, "log_history": []}')


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(("do", "fault"), [
    (lambda path: None, None),
    (lambda path: (path / "config.json").unlink(), None),
    (lambda path: (path / "eval.json").write_text("{"), None),
    (lambda path: cut_in_half(path / "trainer_state.json"), "trainer_state.json is damaged"),
    (lambda path: (path / "trainer_state.json").write_text("[3]"), "trainer_state.json is damaged"),
    (lambda path: cut_in_half(path / "model.safetensors"), "model.safetensors: safetensors, header cut short"),
    (lambda path: cut_in_half(path / "optimizer.pt"), "optimizer.pt: no end record: cut short"),
    (lambda path: (path / "optimizer.pt").write_bytes(b""), "optimizer.pt: empty"),
    (lambda path: (path / "sharded_0/.metadata").unlink(), "sharded_0: distributed checkpoint, not marked complete"),
    (lambda path: cut_in_half(path / "sharded_0/__0_0.distcp"),
     "sharded_0: distributed checkpoint, shard __0_0.distcp has 5 of 10 bytes"),
    (lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-1.safetensors"}}'),
     "shard model-1.safetensors is missing"),
    (lambda path: (path / "model.safetensors.index.json").write_text("{"), "model.safetensors.index.json is damaged"),
    (lambda path: (path / "checkpoint-is-incomplete.txt").touch(),
     "checkpoint-is-incomplete.txt is there: its save was never finished"),
])  # fmt: skip
def test_a_directory_of_a_trainer_is_whole_if_every_file_is(tmp_path: Path, do: Any, fault: str | None) -> None:
    by_trainer(tmp_path / "iter_3")
    do(tmp_path / "iter_3")
    (found,) = checkpoints(a_pass(tmp_path, settle_s=0))
    whole = "trainer_state.json, and every file beside it intact"
    assert (found.state.value, found.evidence) == (("incomplete", fault) if fault else ("complete", whole))


def test_a_trainers_state_without_weights_is_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "iter_3").mkdir()
    (tmp_path / "iter_3/trainer_state.json").write_text('{"global_step": 3}')
    (found,) = checkpoints(a_pass(tmp_path, settle_s=0))
    assert (found.state.value, found.evidence) == ("incomplete", "no weights beside its trainer_state.json")


def test_a_trainers_directory_is_complete_the_moment_its_state_is_there(tmp_path: Path) -> None:
    by_trainer(tmp_path / "iter_3")
    state = (tmp_path / "iter_3/trainer_state.json").rename(tmp_path / "aside")
    assert [each.state.value for each in checkpoints(a_pass(tmp_path))] == []  # so far a directory like any other
    (tmp_path / "iter_3/training_args.bin").write_bytes(torch_zip())
    assert [each.state.value for each in checkpoints(a_pass(tmp_path))] == ["in flight"]
    state.rename(tmp_path / "iter_3/trainer_state.json")
    assert [each.state.value for each in checkpoints(a_pass(tmp_path))] == ["complete"]


def test_a_hole_in_a_format_without_a_checksum_is_found(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    content = safetensors(1 << 20)
    path = work_dir / "epoch_3.pth"
    with path.open("wb") as file:
        file.write(content[:4096])
        file.truncate(len(content))
    with_checkpoints.tick(path)
    report = a_pass(work_dir, max_keep=1, interval=1)
    assert (states(report)["epoch_3.pth"], pointed(work_dir)) == ("incomplete", "epoch_2.pth")


def test_a_directory_that_somebody_reads_stays_until_he_has_done(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints()
    for step in (1, 2):
        with_checkpoints.shards(f"iter_{step}")
    import subprocess
    import sys

    code = f"import sys; f = open({str(work_dir / 'iter_1/__0_0.distcp')!r}); print(flush=True); sys.stdin.read()"
    reader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader, reader.stdout:
        reader.stdout.readline()
        report = a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
        (held,) = [d for d in report.survey.decisions if d.checkpoint.name == "iter_1"]
        assert (held.decision, held.reasons) == ("skip", (f"open in process {reader.pid}",))
        reader.stdin.close()
        reader.wait()
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    eventually(lambda: left(work_dir) == ["iter_2"])
