"""Background saves of a state on a GPU: of the moment they were asked for, whatever its streams do next.

A stream is kept busy by sleeping kernels, so that what is not waited for would be seen too early or too late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptd.shim import CheckpointHook
from ckptd.shim.snapshot import HostCopy

from .test_background import same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

BUSY_CYCLES = 200_000_000  # about a tenth of a second
SIZE = 2**22


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RANK", raising=False)
    yield
    torch.cuda.synchronize()


def busy() -> None:
    torch.cuda._sleep(BUSY_CYCLES)


def test_what_the_stream_was_still_to_compute_is_in_the_copy_and_what_comes_later_is_not() -> None:
    weight, host = torch.zeros(SIZE, device="cuda"), HostCopy()
    for step in range(1, 4):
        busy()
        weight.fill_(step)
        held = host.take({"weight": weight, "again": weight.view(2, -1)})
        weight.fill_(-1)
        host.finish()
        assert held["again"].eq(step).all()
        assert held["weight"].data_ptr() == held["again"].data_ptr()


def test_the_call_does_not_wait_for_the_stream() -> None:
    weight, host = torch.zeros(SIZE, device="cuda"), HostCopy()
    host.take({"weight": weight})  # takes the memory, which may wait
    host.finish()
    busy()
    host.take({"weight": weight})
    assert not torch.cuda.current_stream().query()
    host.finish()


def test_page_locked_memory_is_used_again_and_a_late_copy_does_not_spoil_the_next() -> None:
    weight, host = torch.zeros(SIZE, device="cuda"), HostCopy()
    places = set()
    for step in range(1, 5):
        busy()
        weight.fill_(step)
        held = host.take({"weight": weight})  # that of the step before is not waited for
        assert held["weight"].is_pinned()
        places.add(held["weight"].data_ptr())
    host.finish()
    assert len(places) == 1
    assert held["weight"].eq(4).all()


def test_the_stream_that_is_current_at_the_call_is_the_one_that_counts() -> None:
    training, host = torch.cuda.Stream(), HostCopy()
    with torch.cuda.stream(training):
        weight = torch.zeros(SIZE, device="cuda")
        for step in range(1, 4):
            busy()
            weight.fill_(step)
            held = host.take({"weight": weight})
            weight.fill_(-1)
            host.finish()
            assert held["weight"].eq(step).all()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_memory_that_is_freed_at_once_is_not_another_tensors_before_it_is_copied() -> None:
    host = HostCopy()
    for step in range(1, 4):
        weight = torch.full((SIZE,), float(step), device="cuda")
        busy()
        held = host.take({"weight": weight})
        del weight
        other = torch.full((SIZE,), -1.0, device="cuda")
        host.finish()
        assert held["weight"].eq(step).all()
        del other


def views() -> dict[str, Any]:
    large = torch.arange(40.0 * 50 * 6, device="cuda").reshape(40, 50, 6)
    return {
        "column": large[:, :, 3],
        "cut and turned": large[:30, :20].permute(2, 0, 1),
        "left": large[:, :30, 0],
        "overlapping": large[:, 20:50, 0],
        "expanded": torch.ones(1, 3, device="cuda").expand(500, 3),
        "windows": torch.arange(20.0, device="cuda").unfold(0, 5, 1),
        "last": torch.randn(2, 3, 4, 5, device="cuda").to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3, device="cuda"),
        "scalar": torch.tensor(3.0, device="cuda"),
        "half": torch.randn(5, device="cuda").bfloat16(),
        "conjugated": torch.randn(3, device="cuda").to(torch.complex64).conj(),
        "sparse": torch.eye(3, device="cuda").to_sparse(),
        "rows": torch.eye(3, device="cuda").to_sparse_csr(),
        "on the host": torch.randn(7),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_views_of_every_kind_arrive_as_they_are() -> None:
    state, host = views(), HostCopy()
    before = {name: dense(each) for name, each in state.items()}
    training = torch.cuda.Stream()
    training.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(training):
        busy()
        held = host.take(state)
        for each in state.values():
            spoil(each)
    host.finish()
    for name, expected in before.items():
        assert torch.equal(expected, dense(held[name])), name


def spoil(tensor: torch.Tensor) -> None:
    """Write over all that the tensor looks at, by a kernel of the current stream."""
    if tensor.layout is not torch.strided:
        tensor = tensor._values() if tensor.is_sparse else tensor.values()
    storage = tensor.untyped_storage()
    torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).zero_()


def dense(tensor: torch.Tensor) -> torch.Tensor:
    full = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return full.resolve_conj().cpu().clone()


def test_a_default_device_leaves_the_copies_in_host_memory() -> None:
    host = HostCopy()
    with torch.device("cuda"):
        held = host.take({"weight": torch.ones(5), "row": torch.arange(40.0).reshape(4, 10)[:, :4]})
    host.finish()
    assert {each.device.type for each in held.values()} == {"cpu"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs that torch can use")
def test_each_device_has_its_own_order() -> None:
    weights, host = [torch.zeros(SIZE, device=f"cuda:{number}") for number in range(2)], HostCopy()
    for step in range(1, 4):
        for number, weight in enumerate(weights):
            with torch.cuda.device(number):
                busy()
                weight.fill_(step)
        held = host.take({"weights": weights})
        for weight in weights:
            weight.fill_(-1)
        host.finish()
        assert all(each.eq(step).all() for each in held["weights"])


def test_a_run_on_a_gpu_is_saved_in_the_background_and_resumed(tmp_path: Path) -> None:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).cuda()
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = parts()
    expected = {}
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=model, optimizer=optimizer)
        for epoch in range(3):
            busy()
            model(torch.randn(8, 64, device="cuda")).square().mean().backward()
            optimizer.step()
            path = ours.after_train_epoch(epoch)
            expected = {name: each.to("cpu", copy=True) for name, each in model.state_dict().items()}
            with torch.no_grad():
                for each in model.parameters():
                    each.fill_(-1)
            model.load_state_dict(expected)
    again, its_optimizer = parts()
    with CheckpointHook(tmp_path) as ours:
        assert ours.resume(model=again, optimizer=its_optimizer).path == path
    assert same(expected, {name: each.cpu() for name, each in again.state_dict().items()})
    assert same(its_optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    assert os.path.getsize(tmp_path / "epoch_3.pth") > 0
