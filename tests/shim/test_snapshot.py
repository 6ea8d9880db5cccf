"""A copy in kept host memory: equal, aliasing nothing live, sharing what is shared, and no larger than it must be."""

from __future__ import annotations

import copy
import io
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ckptd.errors import CkptdError
from ckptd.shim.snapshot import HostCopy

PAGE = resource.getpagesize()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape)


def tied() -> dict[str, Any]:
    weight = nn.Parameter(numbers(5, 3))
    return {"embedding": weight, "head": weight, "transposed": weight.detach().t()}


def views_of_a_large_storage() -> dict[str, Any]:
    large = numbers(1000, 100)
    return {"row": large[7], "column": large[:, 3], "corner": large[-2:, -3:], "overlapping": large[7:9]}


def interleaved() -> dict[str, Any]:
    pairs = numbers(300, 2)
    return {"left": pairs[:, 0], "right": pairs[:, 1]}


def sharing_with_gaps() -> dict[str, Any]:
    large = numbers(40, 10)
    return {"left": large[:, :4], "middle": large[:, 2:6]}


def dtype_views() -> dict[str, Any]:
    bits = numbers(6)
    return {"floats": bits, "bits": bits.view(torch.int32), "bytes": bits.view(torch.uint8)[3:9]}


def expanded() -> dict[str, Any]:
    row = numbers(1, 4)
    return {"all": row.expand(500, 4), "both": numbers(1).expand(3, 7), "shared": row}


def in_other_orders() -> dict[str, Any]:
    image = numbers(2, 3, 4, 5)
    return {"last": image.to(memory_format=torch.channels_last), "permuted": numbers(3, 4, 5).permute(2, 0, 1)}


def windows() -> dict[str, Any]:
    return {"windows": numbers(20).unfold(0, 5, 1)}


def empty() -> dict[str, Any]:
    return {"flat": torch.empty(0), "deep": torch.empty(3, 0, 2), "cut": numbers(4)[4:], "scalar": torch.tensor(3)}


def in_other_layouts() -> dict[str, Any]:
    rows, several = torch.eye(3).to_sparse_csr(), torch.nested.nested_tensor([numbers(2), numbers(3)])
    return {"rows": rows, "same": rows, "columns": torch.eye(3).to_sparse_csc(), "several": several}


def of_many_kinds() -> dict[str, Any]:
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.bool, torch.int8, torch.int64)
    plain = {str(kind): numbers(7).to(kind) for kind in kinds}
    conjugated = {"conj": numbers(3).to(torch.complex64).conj(), "imag": numbers(3).to(torch.complex64).conj().imag}
    return {**plain, **conjugated, "sparse": torch.eye(3).to_sparse()}


def with_gradients() -> dict[str, Any]:
    leaf = numbers(3).requires_grad_()
    return {"leaf": leaf, "frozen": nn.Parameter(numbers(2), requires_grad=False), "result": leaf * 2}


def containers() -> dict[str, Any]:
    moment = numbers(3)
    again = [moment, (moment, 1), {"x": moment}]
    named = OrderedDict(weight=moment)
    named._metadata = OrderedDict({"": {"version": 2}})
    return {"list": again, "same": again, "named": named, 3: "text", "none": None, "number": 1.5}


# Torch says of each of these layouts, once, that it is young.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support", "ignore:The PyTorch API of nested tensors")

STATES = (tied, views_of_a_large_storage, interleaved, sharing_with_gaps, dtype_views, expanded, in_other_orders,
          windows, empty, in_other_layouts, of_many_kinds, with_gradients, containers)  # fmt: skip


@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
def test_a_copy_is_equal_and_stays_so_whatever_happens_to_the_state(make: Any) -> None:
    state = make()
    before = {key: plain(value) for key, value in state.items()}
    held = HostCopy().take(state)
    with torch.no_grad():
        for tensor in all_tensors(state):
            if tensor.is_nested or tensor.layout in (torch.sparse_csr, torch.sparse_csc):
                tensor.values().fill_(1)
            elif tensor.layout is torch.strided:
                tensor.untyped_storage().fill_(1)
    assert_equal(before, held)
    if make is not dtype_views:  # which torch.save refuses, copied or not
        assert_equal(held, loaded(saved(held)))


@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
def test_a_copy_is_no_larger_than_torch_would_save_it(make: Any) -> None:
    state = make()
    if make is dtype_views:
        with pytest.raises(RuntimeError, match="different types"):
            saved(state)
        return
    # A name in the file is as long as its number: a few bytes either way.
    assert len(saved(HostCopy().take(state))) <= len(saved(state)) + 256


def test_no_byte_is_held_that_the_state_does_not_use() -> None:
    large = numbers(1000, 100)
    held = HostCopy().take(
        {"rows": large[7:9], "row": large[7], "corner": large[-2:, -3:], "same": large[-2:, -3:].t()}
    )
    assert [each.untyped_storage().nbytes() for each in held.values()] == [800, 800, 24, 24]
    assert held["corner"].data_ptr() == held["same"].data_ptr()
    assert HostCopy().take(expanded())["both"].untyped_storage().nbytes() == 4
    assert [each.untyped_storage().nbytes() for each in HostCopy().take(interleaved()).values()] == [1200, 1200]
    alone = HostCopy().take({"column": numbers(1000, 100)[:, 3]})["column"]
    assert alone.untyped_storage().nbytes() == 4000


def test_what_the_state_shares_is_shared() -> None:
    held = HostCopy().take(tied())
    assert held["embedding"] is held["head"]
    assert held["transposed"].data_ptr() == held["embedding"].data_ptr()
    lists = HostCopy().take(containers())
    assert lists["list"] is lists["same"]
    assert lists["list"][0] is lists["list"][2]["x"] is lists["named"]["weight"]
    assert lists["named"]._metadata == {"": {"version": 2}}


def test_types_and_gradients_are_as_they_were() -> None:
    held = HostCopy().take(with_gradients())
    assert isinstance(held["frozen"], nn.Parameter)
    assert [each.requires_grad for each in held.values()] == [True, False, True]


def test_memory_is_used_again_and_given_back_once_the_state_has_no_use_for_it() -> None:
    before, host = kept_bytes(), HostCopy()
    sizes = [("small", 2**18), ("small", 2**18), ("grown", 2**20), ("shrunk", 2**16), ("empty", 0)]
    places = {}
    for what, size in sizes:
        held = host.take({"weight": numbers(size), "count": torch.tensor(3)})
        places.setdefault(what, held["weight"].data_ptr())
        assert held["weight"].data_ptr() == places[what]
        assert kept_bytes() - before == PAGE * -(-(4 * size + 64) // PAGE)
        del held
    assert host.take({"number": 1}) == {"number": 1}
    assert kept_bytes() == before


def test_what_has_been_handed_out_outlives_a_copy_of_another_size_and_the_memory_that_was_kept() -> None:
    before = kept_bytes()
    host, weight = HostCopy(), numbers(1000)
    first = host.take({"weight": weight})
    second = host.take({"weight": numbers(5000)})
    del host
    assert torch.equal(first["weight"], weight)
    del first, second
    assert kept_bytes() == before


def test_every_tensor_is_as_aligned_as_torchs_own() -> None:
    state = {str(n): numbers(n).to(kind) for n in range(1, 40, 3) for kind in (torch.int8, torch.complex128)}
    assert {each.data_ptr() % 64 for each in HostCopy().take(state).values()} == {0}


def test_memory_that_is_not_there_is_said_and_what_was_kept_serves_the_next_copy() -> None:
    host, small, large = HostCopy(), numbers(1000), torch.zeros(2**26)
    host.take({"weight": small})
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, limits[1]))
    try:
        with pytest.raises(CkptdError, match=r"^268435456 bytes .*: Cannot allocate memory\. Save without background"):
            host.take({"weight": large})
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert torch.equal(host.take({"weight": small})["weight"], small)


def test_memory_made_in_inference_mode_can_be_used_outside_of_it() -> None:
    host = HostCopy()
    with torch.inference_mode():
        host.take({"weight": numbers(10)})
    weight = numbers(10)
    assert torch.equal(host.take({"weight": weight})["weight"], weight)


def test_a_state_that_shares_everything_is_not_quadratic() -> None:
    """Thousands of views of one storage, as a flat parameter has."""
    flat = numbers(20_000)
    held = HostCopy().take({"flat": flat, **{f"v{n}": flat[n : n + 2] for n in range(5000)}})
    assert len({each.untyped_storage().data_ptr() for each in held.values()}) == 1


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_views_of_one_storage(data: st.DataObject) -> None:
    storage = torch.arange(60.0)
    state = {}
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        strides = data.draw(st.lists(st.integers(0, 5), min_size=len(shape), max_size=len(shape)))
        state[name] = storage.as_strided(shape, strides, data.draw(st.integers(0, 10)))
    before = {name: each.clone() for name, each in state.items()}
    held = HostCopy().take(state)
    storage.fill_(-1)
    assert_equal(before, held)
    # Views that share nothing may lie apart in the copy, but never in more bytes than they were views of.
    kept = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in held.values()}
    assert sum(kept.values()) <= storage.untyped_storage().nbytes()


def test_a_copy_lies_in_host_memory_wherever_new_tensors_go() -> None:
    state = {**sharing_with_gaps(), **in_other_orders()}
    before = {key: plain(value) for key, value in state.items()}
    with torch.device("meta"):  # as after torch.set_default_device
        held = HostCopy().take(state)
    assert_equal(before, held)


def kept_bytes() -> int:
    """How much of this process's memory no forked child would have."""
    kept = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            begin, end = (int(each, 16) for each in first.split("-"))
            size = end - begin if rest[:4] == ["rw-p", "00000000", "00:00", "0"] else 0
        elif first == "VmFlags:" and "dc" in rest:
            kept += size
    return kept


def plain(value: Any) -> Any:
    """A copy of a value, by what torch itself can copy."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def all_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for each in inside for tensor in all_tensors(each)]


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def loaded(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def assert_equal(expected: Any, found: Any) -> None:
    if isinstance(expected, Tensor):
        assert expected.dtype is found.dtype
        assert expected.is_nested or expected.shape == found.shape
        if expected.is_nested or expected.layout in (torch.sparse_csr, torch.sparse_csc):
            assert (expected.layout, expected.is_nested) == (found.layout, found.is_nested)
            assert torch.equal(expected.values(), found.values())
        elif expected.layout is torch.strided:
            dense = expected.contiguous().resolve_conj().resolve_neg()
            assert torch.equal(dense, found.contiguous().resolve_conj().resolve_neg())
        else:
            assert torch.equal(expected.to_dense(), found.to_dense())
    elif isinstance(expected, dict):
        assert list(expected) == list(found)
        for key, value in expected.items():
            assert_equal(value, found[key])
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_equal(one, other)
    else:
        assert expected == found
