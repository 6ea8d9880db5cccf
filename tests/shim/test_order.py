"""The order of copies from GPUs, on a model of streams: the copy is right, however lazy or hasty they are.

What a stream is asked for is not done until something waits for it, and then no more is done than must be: whatever
is not waited for is seen too early. At the end all else is done, last asked first: whatever is not held back is seen
too late. Real ones are for test_gpu.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ckptd.shim.snapshot import HostCopy


@dataclass(eq=False)
class Work:
    """Something a stream is to do, once what stands in front of it is done."""

    do: Callable[[], None]
    after: list[Work]
    done: bool = False

    def synchronize(self) -> None:
        if not self.done:
            for each in self.after:
                each.synchronize()
            self.done = True
            self.do()


@dataclass(eq=False)
class Stream:
    device: str
    queue: list[Work] = field(default_factory=list)

    def ask(self, do: Callable[[], None], *more: Work) -> Work:
        self.queue.append(Work(do, [*self.queue[-1:], *more]))
        return self.queue[-1]

    def wait_stream(self, other: Stream) -> None:
        self.ask(lambda: None, *other.queue[-1:])

    def record_event(self, event: Any) -> Work:
        return self.ask(lambda: None)


class Cuda:
    """What HostCopy uses of torch.cuda."""

    def __init__(self) -> None:
        self.current: dict[str, Stream] = {}
        self.all: list[Stream] = []

    def Stream(self, device: str) -> Stream:
        self.all.append(Stream(device))
        return self.all[-1]

    def Event(self, blocking: bool) -> None:
        assert blocking

    def current_stream(self, device: str) -> Stream:
        return self.current.setdefault(device, self.Stream(device))

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream(stream.device)
        self.current[stream.device] = stream
        yield
        self.current[stream.device] = before

    def do_all_that_is_left(self) -> None:
        for stream in reversed(self.all):
            for each in reversed(stream.queue):
                each.synchronize()


@dataclass(eq=False)
class OnDevice:
    """A number on a device, or in page-locked memory to which a device brings it."""

    cuda: Cuda
    device: str
    value: int = 0
    is_cuda: bool = True
    recorded: list[Stream] = field(default_factory=list)

    def stride(self) -> tuple[int, ...]:
        return (1,)

    def fill_(self, value: int) -> None:
        self.cuda.current_stream(self.device).ask(lambda: setattr(self, "value", value))

    def copy_(self, source: OnDevice, *, non_blocking: bool) -> None:
        assert non_blocking
        self.cuda.current_stream(source.device).ask(lambda: setattr(self, "value", source.value))

    def record_stream(self, stream: Stream) -> None:
        self.recorded.append(stream)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    model = Cuda()
    for name in ("Stream", "Event", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(model, name))
    return model


@pytest.mark.parametrize("training", ["the same stream each time", "another stream each time"])
@pytest.mark.parametrize("read", ["as soon as it may be", "when all is done"])
def test_a_copy_is_of_the_moment_it_was_asked_for(training: str, read: str, cuda: Cuda) -> None:
    devices = ["cuda:0", "cuda:1"]
    weights = [OnDevice(cuda, device) for device in devices]
    host, kept = HostCopy(), [OnDevice(cuda, "cpu", is_cuda=False) for _ in weights]
    for step in (1, 2, 3):
        if training == "another stream each time":
            for device in devices:
                last, cuda.current[device] = cuda.current_stream(device), cuda.Stream(device)
                cuda.current[device].wait_stream(last)  # which is for who changes streams to see to
        for weight in weights:
            weight.fill_(step)
        host._copy(list(zip(kept, weights, strict=True)))
        host._expect(set(devices))
        for weight in weights:
            weight.fill_(-1)
        if read == "when all is done":
            cuda.do_all_that_is_left()
        host.finish()
        assert [each.value for each in kept] == [step, step]
    assert all(len(set(weight.recorded)) == 1 for weight in weights), "a side stream is made once"
