"""What a process has found out goes into the memory, and is forgotten with the names; a pointer names its last part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptd.core.checkpoint import Durability
from ckptd.core.memory import Memory, Seen
from ckptd.core.survey import Findings

SEEN = {
    name: Seen("epoch_{}.pth", name, step, 10, 500, 500, step, inode=step)
    for step, name in enumerate(("epoch_1.pth", "epoch_2.pth"), 1)
}
ONE, OTHER = (seen.bytes_on_disk for seen in SEEN.values())


@pytest.mark.parametrize("before", Durability)
@pytest.mark.parametrize(("findings", "durability"), [
    pytest.param(Findings(), None, id="nothing"),
    pytest.param(Findings(durability={ONE: Durability.SYNCED}), Durability.SYNCED, id="an fsync has succeeded"),
    pytest.param(Findings(durability={ONE: Durability.FAILED}), Durability.FAILED, id="an fsync has failed"),
    pytest.param(Findings(durability={ONE._replace(inode=99): Durability.SYNCED}), None, id="of a copy in its place"),
])  # fmt: skip
def test_what_came_of_an_fsync_is_written_down_of_those_bytes_alone(
    findings: Findings, durability: Durability | None, before: Durability
) -> None:
    memory = Memory({name: replace(seen, durability=before) for name, seen in SEEN.items()})
    written = findings.written_into(memory)
    assert written.seen["epoch_1.pth"].durability is (before if durability is None else durability)
    assert written.seen["epoch_2.pth"] == memory.seen["epoch_2.pth"]


@pytest.mark.parametrize("before", [None, "", "damaged"])
def test_what_is_wrong_with_a_content_is_written_down_of_those_bytes_alone(before: str | None) -> None:
    memory = Memory({name: replace(seen, content=before, durability=Durability.SYNCED) for name, seen in SEEN.items()})
    for fault in ("", "damaged at 5"):
        written = Findings(content={ONE: fault}).written_into(memory)
        assert written.seen["epoch_1.pth"] == replace(memory.seen["epoch_1.pth"], content=fault)
        assert written.seen["epoch_2.pth"] == memory.seen["epoch_2.pth"]


def test_what_is_gone_is_forgotten_whatever_was_found_out_of_it() -> None:
    findings = Findings({ONE: "", OTHER: "damaged"}, {ONE: Durability.SYNCED, OTHER: Durability.FAILED})
    findings.forget(lambda name: name == "epoch_1.pth")
    assert (findings.content, findings.durability) == ({OTHER: "damaged"}, {OTHER: Durability.FAILED})


def test_what_is_on_stable_storage_can_be_left_out_and_what_has_failed_stays() -> None:
    findings = Findings({ONE: ""}, {ONE: Durability.SYNCED, OTHER: Durability.FAILED})
    assert findings.without_synced() == Findings({ONE: ""}, {OTHER: Durability.FAILED})
    assert len(findings.durability) == 2
