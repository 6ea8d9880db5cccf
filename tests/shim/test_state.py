"""What a run may give to be saved: what comes back as it was, and what is refused by its key before a file is there."""

from __future__ import annotations

import collections
import enum
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from ckptd.errors import CkptdError, UsageError
from ckptd.shim import CheckpointHook
from tests.conftest import left

from .test_background import same


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


class Kind(enum.IntEnum):
    ONE = 1


class Own(torch.Tensor):
    """A subclass that no torch.load knows."""


def with_note(note: Any) -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.note = note  # type: ignore[attr-defined]
    return tensor


# Torch says of each of these layouts, once, that it is young.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")

REFUSED = [
    pytest.param(numpy.float64(1), "state: a numpy.float64,", id="a score of numpy's"),
    pytest.param([1, {"a": numpy.arange(3)}], "state[1].a: a numpy.ndarray,", id="an array of numpy's"),
    pytest.param({numpy.int64(3): 1}, "state.3 (the key itself): a numpy.int64,", id="a key of numpy's"),
    pytest.param({"a": (Kind.ONE,)}, "state.a[0]: a tests.shim.test_state.Kind,", id="an enum, which is a number too"),
    pytest.param(collections.deque([1]), "state: a collections.deque,", id="a queue"),
    pytest.param({"f": len}, "state.f: a builtins.builtin_function_or_method,", id="a function"),
    pytest.param((n for n in range(3)), "state: a builtins.generator,", id="what cannot even be written"),
    pytest.param(torch.ones(2).as_subclass(Own), "state: a tests.shim.test_state.Own,", id="a tensor of another class"),
    pytest.param(with_note(numpy.float32(1)), "state.note: a numpy.float32,", id="what hangs on a tensor"),
    pytest.param(2**2040, "state: a builtins.int,", id="a number that no torch.load reads"),
    pytest.param(torch.ones(2, device="meta"), "state: a tensor on the meta device,", id="a tensor without values"),
]
LOADABLE: dict[str, Callable[[], Any]] = {
    "the largest numbers": lambda: [2**2039 - 1, 1 - 2**2039],
    "a counter": lambda: collections.Counter("aab"),
    "texts that are none": lambda: ["\udcff", b"\0", ""],
    "keys of many kinds": lambda: {(1, "a"): 1, None: 2, 2.5: 3, True: 4},
    "three hundred levels": lambda: nested(300),
    "small floats": lambda: [torch.arange(4.0).to(kind) for kind in (torch.bfloat16, torch.float8_e4m3fn)],
    "complex numbers": lambda: torch.arange(4).to(torch.complex64).conj(),
    "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
    "tensors of many lengths": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "what hangs on a tensor": lambda: with_note({"a": [1]}),
    "the state of python's own numbers at random": lambda: random.getstate(),
}


def nested(levels: int) -> Any:
    inside: list[Any] = []
    for _ in range(levels):
        inside = [inside]
    return inside


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("value", "words"), REFUSED)
def test_what_no_resume_could_read_is_named_before_training_and_at_any_save(
    value: Any, words: str, background: bool, tmp_path: Path
) -> None:
    with CheckpointHook(tmp_path, interval=1, background=background) as ours:
        with pytest.raises(CkptdError) as at_once:
            ours.before_run(model=nn.Linear(1, 1), state=value)
        assert str(at_once.value).startswith(words)
        assert "\n" not in str(at_once.value)
        record: dict[str, Any] = {"state": 0}
        ours.before_run(model=nn.Linear(1, 1), record=record)
        ours.after_train_epoch(0)
        record["state"] = value
        with pytest.raises(CkptdError) as later:
            ours.after_train_epoch(1)
        assert str(later.value).startswith(f"record.{words}")
    assert left(tmp_path) == ["epoch_1.pth"]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", LOADABLE)
def test_what_comes_back_is_what_was_given(name: str, background: bool, tmp_path: Path) -> None:
    given, model = LOADABLE[name](), nn.Linear(1, 1)
    with CheckpointHook(tmp_path, interval=1, background=background) as ours:
        ours.before_run(model=model, state=given)
        ours.after_train_epoch(0)
    with CheckpointHook(tmp_path) as ours:
        back = ours.resume(model=model, state=None).states["state"]
    if isinstance(given, torch.Tensor) and (given.is_nested or given.layout is not torch.strided):
        assert (back.layout, back.is_nested) == (given.layout, given.is_nested)
        assert torch.equal(back.values(), given.values())
        return
    assert type(back) is type(given)
    assert same(dense(back), dense(given))
    if name == "what hangs on a tensor":
        assert back.note == given.note


def dense(value: Any) -> Any:
    """As torch.equal can compare it."""
    if isinstance(value, list) and isinstance(value[0], torch.Tensor):
        return [each.float() for each in value]
    return value.resolve_conj() if isinstance(value, torch.Tensor) else value


def test_what_holds_itself_or_is_too_deep_is_told_and_no_trace(tmp_path: Path) -> None:
    cycle: dict[str, Any] = {}
    cycle["again"] = [cycle]
    for value in (cycle, nested(5000)):
        with pytest.raises(CkptdError, match=r"^state: holds itself, or is nested too deeply"):
            CheckpointHook(tmp_path).before_run(model=nn.Linear(1, 1), state=value)
    assert os.listdir(tmp_path) == []


def test_a_tensor_of_another_class_is_tried_once_and_saved_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **how: tried.append(args) or load(*args, **how))
    with torch.serialization.safe_globals([Own]), CheckpointHook(tmp_path, interval=1) as ours:
        own = torch.zeros(2).as_subclass(Own)
        record = {"own": own}
        ours.before_run(model=nn.Linear(1, 1), record=record)
        tried.clear()
        for epoch in range(3):
            ours.after_train_epoch(epoch)
            own += 1
        assert len(tried) == 1
        assert load(tmp_path / "epoch_3.pth", weights_only=True)["record"]["own"].tolist() == [2.0, 2.0]


class SavesOnly:
    def state_dict(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(("value", "words"), [
    (SavesOnly(), "a SavesOnly has a state_dict and no load_state_dict"),
    (nn.Linear, "is the class Linear: give an object of it"),
])  # fmt: skip
def test_what_could_be_saved_and_never_loaded_is_refused_before_training(
    value: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        CheckpointHook(tmp_path).before_run(model=nn.Linear(1, 1), state=value)


class Live:
    """Returns what it goes on to change, as many do."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {"tensor": torch.zeros(3), "list": [0], "deep": {"n": [torch.zeros(1)]}}

    def state_dict(self) -> dict[str, Any]:
        return self.held

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state


def test_references_to_what_lives_are_saved_as_they_were(tmp_path: Path) -> None:
    live = Live()
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=nn.Linear(1, 1), live=live)
        path = ours.after_train_epoch(0)
        live.held["tensor"].fill_(1)
        live.held["list"][0] = 1
        live.held["deep"]["n"][0].fill_(1)
    assert path is not None
    assert same(torch.load(path, weights_only=True)["live"], Live().held)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
    "compiled blocks": lambda: nn.Sequential(torch.compile(nn.Linear(3, 3)), torch.compile(nn.BatchNorm1d(3))),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
    "an average of models": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(3, 3), use_buffers=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_kinds_resume_as_they_were(name: str, tmp_path: Path) -> None:
    first, second = MODELS[name](), MODELS[name]()
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=first)
        if name == "lazy":  # made by the first batch, after before_run
            first(torch.ones(2, 3))
        ours.after_train_epoch(0)
    if name == "lazy":
        second(torch.zeros(2, 3))
    with CheckpointHook(tmp_path) as ours:
        ours.resume(model=second)
    assert same(dict(first.state_dict()), dict(second.state_dict()))


def test_scalers_and_several_optimizers_resume_as_they_were(tmp_path: Path) -> None:
    def parts() -> dict[str, Any]:
        model = nn.Linear(2, 2)
        optimizers = {"g": torch.optim.Adam(model.parameters()), "d": torch.optim.SGD(model.parameters(), momentum=0.9)}
        return {"model": model, "optimizer": optimizers, "scaler": torch.amp.GradScaler("cpu", init_scale=8.0)}

    first, second = parts(), parts()
    first["scaler"].scale(first["model"](torch.ones(2)).sum()).backward()
    for each in first["optimizer"].values():
        each.step()
    first["scaler"].update(4.0)
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(**first)
        ours.after_train_epoch(0)
    with CheckpointHook(tmp_path) as ours:
        ours.resume(**second)
    for name, each in first["optimizer"].items():
        assert same(each.state_dict(), second["optimizer"][name].state_dict())
    assert second["scaler"].get_scale() == first["scaler"].get_scale()
