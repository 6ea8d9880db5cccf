"""Many small tensors as one row of numbers, whose sums over the ranks tell all there is to tell: one all-reduce."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from .ranks import Group, device_of, rank_of, world_size


class Bucket:
    """First in the row is how many ranks hold something else, then what is averaged or rank 0's, tensor by tensor.

    Integers and booleans, which have no mean, are there as bytes, each a number, which only rank 0 puts in: the sum
    is rank 0's byte.
    """

    def __init__(self, tensors: Iterable[Tensor], kind: torch.dtype, group: Group) -> None:
        """kind: the type that means are computed in."""
        self._group, device = group, device_of(group)
        # Those of one type on one device go to the backend's device and come back as one piece.
        self._parts = [(those, _flat(those)) for those in _alike(tensors)]
        rows = [torch.zeros(1, dtype=kind, device=device)]
        for _, flat in self._parts:
            numbers = flat
            if not _has_mean(flat):
                numbers = flat.view(torch.uint8)
                numbers = numbers if rank_of(group) == 0 else torch.zeros_like(numbers)
            rows.append(numbers.to(device, kind))
        self.row = torch.cat(rows)

    @classmethod
    def of_another_kind(cls, length: int, group: Group) -> Bucket:
        """What a rank sends that does not hold what the others may expect: their sum is of no use then."""
        bucket = cls([], torch.float32, group)
        bucket.row = torch.zeros(length, device=device_of(group))
        bucket.row[0] = 1
        return bucket

    def sum(self) -> bool:
        """Add up the rows of all ranks; whether all of them are of the same kind."""
        dist.all_reduce(self.row, group=self._group)
        return not self.row[0].item()

    def give_back(self) -> None:
        """Give the tensors their new values, once the rows are added up."""
        at = 1
        for those, flat in self._parts:
            if _has_mean(flat):
                begin, at = at, at + len(flat)
                new = self.row[begin:at].div_(world_size(self._group)).to(flat.device, flat.dtype)
            else:
                begin, at = at, at + len(flat) * flat.element_size()
                new = self.row[begin:at].to(flat.device, torch.uint8).view(flat.dtype)
                if torch.equal(new, flat):  # as counts of batches mostly are
                    continue
            pieces = new.split([each.numel() for each in those])  # type: ignore[no-untyped-call]
            # Few calls into torch for hundreds of small tensors, most of which have one dimension.
            torch._foreach_copy_(
                those, [new if old.dim() == 1 else new.view_as(old) for old, new in zip(those, pieces)]
            )


def _alike(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Those of one type on one device together; complex ones as pairs of reals; none that is empty."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for each in tensors:
        if each.numel():
            real = torch.view_as_real(each) if each.is_complex() else each
            alike.setdefault((real.dtype, real.device), []).append(real)
    return iter(alike.values())


def _has_mean(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point


def _flat(tensors: list[Tensor]) -> Tensor:
    flat: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return flat
