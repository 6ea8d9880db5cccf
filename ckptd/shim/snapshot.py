"""A copy of a run's state in host memory that stays as it is while training goes on. Writes nothing.

The copy is what a background save costs the training step, so the memory for it is kept from save to save: pages that
are touched for the first time cost several times the copy itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arena import Arena


class HostCopy:
    """Host memory for one state, used again for the next one. One copy at a time: a new one overwrites the last.

    What comes from a GPU goes into page-locked memory, of which torch takes a power of two for each tensor.
    """

    def __init__(self) -> None:
        self._arena = Arena()
        self._pinned: list[Tensor] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._arrivals: list[torch.cuda.Event] = []

    @torch.no_grad()
    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state equal to `state` that shares no memory with it, and shares inside what `state` shares inside.

        Tensors come to lie in host memory, each storage once, without what no tensor of the state looks at. On
        return the caller may change every host tensor. Copies from a GPU may still be under way: what its current
        stream does next comes after them, and `finish` waits for them.
        """
        copies: dict[int, Any] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        found = {id(each): each for each in _tensors(state)}
        blocks = list(_blocks([each for each in found.values() if _is_plain(each)]))
        for (source, strides, views), buffer in zip(blocks, self._buffers(blocks)):
            held = buffer.view(source.dtype).as_strided(source.shape, strides)
            pairs.append((held, source))
            for tensor, its_strides, offset in views:
                copies[id(tensor)] = _like(tensor, held.as_strided(tensor.shape, its_strides, offset))
        self._copy(pairs)
        for each in found.values():
            if each.layout is not torch.strided or each.is_nested:  # deepcopy knows but some of these
                copies[id(each)] = _like(each, each.detach().to("cpu", copy=True))
        # All else is copied by its own rules, and these find what stands in `copies` copied already.
        copied = copy.deepcopy(state, copies)
        self._expect({each.device for each in found.values() if each.is_cuda})
        return copied

    def finish(self) -> None:
        """Return when every copy has arrived. To be called before anything of a copy is read, by any thread."""
        for each in self._arrivals:
            each.synchronize()

    def _buffers(self, blocks: list[_Block]) -> Iterator[Tensor]:
        """Bytes for each block. What was kept and has no use any more is given back."""
        on_gpu = [block.size_bytes for block in blocks if block.source.is_cuda]
        free: dict[int, list[Tensor]] = {}
        for buffer in self._pinned:
            free.setdefault(buffer.numel(), []).append(buffer)
        self._pinned = [free[size].pop() if free.get(size) else _page_locked(size) for size in on_gpu]
        pieces = self._arena.pieces([block.size_bytes for block in blocks if not block.source.is_cuda])
        pinned, plain = iter(self._pinned), iter(pieces)
        return (next(pinned if block.source.is_cuda else plain) for block in blocks)

    def _expect(self, devices: set[torch.device]) -> None:
        # What deepcopy has copied stays on its device, where the current stream does it, for another thread to read.
        # That stream also comes after our own copies. Blocking: who waits sleeps, and leaves the processor to training.
        self._arrivals = []
        for device in devices:
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrivals.append(torch.cuda.current_stream(device).record_event(event))

    def _copy(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        for device in {source.device for _, source in pairs if source.is_cuda}:
            # In the order of the training stream: after what it has computed, before what it will change.
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream, training = self._streams[device], torch.cuda.current_stream(device)
            stream.wait_stream(training)
            with torch.cuda.stream(stream):
                for held, source in pairs:
                    if source.device == device:
                        held.copy_(_in_order_of(held, source), non_blocking=True)
                        source.record_stream(stream)
            training.wait_stream(stream)
        for held, source in pairs:
            if not source.is_cuda:
                held.copy_(source)


def _page_locked(size_bytes: int) -> Tensor:
    # Made in inference mode it could not be written again outside of it.
    with torch.inference_mode(False):
        return torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)


def _in_order_of(held: Tensor, source: Tensor) -> Tensor:
    """`source`, its elements in memory as those of `held`, so that one transfer does.

    Else torch would go by way of host memory that is not page-locked, and promise nothing of when it gets there.
    """
    if source.stride() == held.stride():
        return source
    return torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=source.device).copy_(source)


class _Block(NamedTuple):
    """Memory that is copied in one piece. All strides and offsets are in elements, of the copy."""

    source: Tensor
    strides: tuple[int, ...]
    views: list[tuple[Tensor, tuple[int, ...], int]]  # each tensor that lies in it, with its strides and offset

    @property
    def size_bytes(self) -> int:
        return self.source.numel() * self.source.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in the containers of `value`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _tensors(inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from _tensors(inside)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a view of a storage and no more than that.

    Subclasses, sparse, nested and quantized ones, and those that are conjugated or negated when they are read, are not.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not tensor.__dict__
    )


def _blocks(tensors: Iterable[Tensor]) -> Iterator[_Block]:
    # Views of one storage with different types go apart: torch.save gives a storage one type.
    stored: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for each in tensors:
        if each.numel():
            stored.setdefault((each.untyped_storage()._cdata, each.dtype), []).append(each)
        else:
            yield _Block(each, each.stride(), [(each, each.stride(), 0)])
    for those in stored.values():
        if len(those) == 1:
            yield _alone(those[0])
            continue
        together: list[Tensor] = []
        end = 0
        for each in sorted(those, key=lambda tensor: tensor.storage_offset()):
            if together and each.storage_offset() >= end:
                yield from _overlapping(together, end)
                together = []
            together.append(each)
            end = max(end, _end(each))
        yield from _overlapping(together, end)


def _alone(tensor: Tensor) -> _Block:
    """A tensor that shares with no other one: copied without gaps, its dimensions in the same order in memory."""
    if tensor.is_contiguous():
        return _Block(tensor, tensor.stride(), [(tensor, tensor.stride(), 0)])
    source = _unexpanded(tensor)
    begin = int(source.storage_offset())
    if source.numel() > _end(source) - begin:  # looks at elements more than once, as a sliding window does
        return _Block(_span(tensor, begin, _end(source)), (1,), [(tensor, tensor.stride(), 0)])
    strides, step = [0] * source.dim(), 1
    for dim in sorted(range(source.dim()), key=lambda dim: (source.stride(dim), -dim)):
        strides[dim] = step
        step *= source.size(dim)
    expanded = tuple(0 if old == 0 else new for old, new in zip(tensor.stride(), strides))
    return _Block(source, tuple(strides), [(tensor, expanded, 0)])


def _overlapping(tensors: list[Tensor], end: int) -> Iterator[_Block]:
    """Tensors whose spans in one storage overlap: copied as one span without its gaps, unless they only interleave.

    Where strides could not tell the elements without the gaps, the gaps are copied too, as torch.save would write them.
    """
    begin = int(tensors[0].storage_offset())
    if len(tensors) == 1:
        yield _alone(tensors[0])
        return
    sizes = [_unexpanded(each).numel() for each in tensors]
    views = [(each, each.stride(), int(each.storage_offset()) - begin) for each in tensors]
    span = _span(tensors[0], begin, end)
    if max(sizes) < len(span):
        used = torch.zeros(len(span), dtype=torch.bool, device="cpu")
        for tensor, strides, offset in views:
            used.as_strided(tensor.shape, strides, offset).fill_(True)
        if int(used.sum()) == sum(sizes):
            yield from map(_alone, tensors)
            return
        moved = [_without_gaps(used.cumsum(0) - 1, *view) for view in views]
        if all(moved):
            span, views = span[used.to(span.device)], [view for view in moved if view]
    yield _Block(span, (1,), views)


def _without_gaps(
    places: Tensor, tensor: Tensor, strides: tuple[int, ...], offset: int
) -> tuple[Tensor, tuple[int, ...], int] | None:
    """A view as it is once each element has moved to its place in `places`; None if no strides can tell that."""
    moved = places.as_strided(tensor.shape, strides, offset)
    first = int(moved[(0,) * moved.dim()])
    ends = [moved.select(dim, min(1, size - 1))[(0,) * (moved.dim() - 1)] for dim, size in enumerate(moved.shape)]
    steps = tuple(int(end) - first for end in ends)
    expected = torch.tensor(first, device="cpu")
    for dim, step in enumerate(steps):
        along = torch.arange(moved.size(dim), device="cpu") * step
        expected = expected + along.reshape([-1 if each == dim else 1 for each in range(moved.dim())])
    return (tensor, steps, first) if torch.equal(moved, expected) else None


def _unexpanded(tensor: Tensor) -> Tensor:
    """The tensor without what `expand` repeats."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _end(tensor: Tensor) -> int:
    """The element of the storage after the last one that the tensor looks at."""
    return (
        int(tensor.storage_offset()) + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride())) + 1
    )


def _span(tensor: Tensor, begin: int, end: int) -> Tensor:
    """The elements of the tensor's storage from `begin` up to `end`, in a row."""
    return tensor.detach().as_strided((end - begin,), (1,), begin)


def _like(tensor: Tensor, held: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(held, requires_grad=tensor.requires_grad)
    return held.requires_grad_(tensor.requires_grad)
