"""Many small tensors as one row of numbers, whose sums over the ranks tell all there is to tell: one all-reduce."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .ranks import Group, device_of, rank_of, world_size


def has_mean(kind: torch.dtype) -> bool:
    """Whether the mean of values of this type is one of its values: not of integers and booleans."""
    return kind.is_floating_point or kind.is_complex


class Bucket:
    """First in the row is how many ranks hold something else, then what is averaged, then what is rank 0's.

    The latter is there as bytes, each a number, which only rank 0 puts in: the sum is rank 0's byte.
    """

    def __init__(self, averaged: list[Tensor], exact: list[Tensor], kind: torch.dtype, group: Group) -> None:
        """averaged: what has a mean, computed in `kind`. exact: what has none. None of them is empty."""
        self._group, device = group, device_of(group)
        self._averaged = [torch.view_as_real(each) if each.is_complex() else each for each in averaged]
        alike: dict[torch.dtype, list[Tensor]] = {}
        for each in exact:
            alike.setdefault(each.dtype, []).append(each)
        self._exact = [(those, _flat(those, device, those[0].dtype).view(torch.uint8)) for those in alike.values()]
        rows = [torch.zeros(1, dtype=kind, device=device)]
        if averaged:
            rows.append(_flat(self._averaged, device, kind))
        for _, content in self._exact:
            rows.append((content if rank_of(group) == 0 else torch.zeros_like(content)).to(kind))
        self.row = torch.cat(rows)

    @classmethod
    def of_another_kind(cls, length: int, group: Group) -> Bucket:
        """What a rank sends that does not hold what the others may expect: their sum is of no use then."""
        bucket = cls([], [], torch.float32, group)
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
        if self._averaged:
            at += sum(each.numel() for each in self._averaged)
            _copy_back(self.row[1:at].div_(world_size(self._group)), self._averaged)
        for those, before in self._exact:
            content = self.row[at : at + len(before)].to(torch.uint8)
            at += len(before)
            if not torch.equal(content, before):  # mostly they are the same, as counts of batches are
                _copy_back(content.view(those[0].dtype), those)


def _flat(tensors: list[Tensor], device: torch.device, kind: torch.dtype) -> Tensor:
    there = [each if each.dtype is kind and each.device == device else each.to(device, kind) for each in tensors]
    flat: Tensor = _flatten_dense_tensors(there)  # type: ignore[no-untyped-call]
    return flat


def _copy_back(flat: Tensor, tensors: list[Tensor]) -> None:
    pieces = _unflatten_dense_tensors(flat, tensors)  # type: ignore[no-untyped-call]
    if all(each.dtype is flat.dtype and each.device == flat.device for each in tensors):
        torch._foreach_copy_(tensors, pieces)  # one call into torch for hundreds of small tensors
        return
    for each, piece in zip(tensors, pieces):
        each.copy_(piece)
