"""The golden cases as a stream of what happens in a directory, for every test that replays them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptd import Policy

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in Path(__file__).with_name("golden").joinpath("mmcv_checkpoint_hook.jsonl").read_text().splitlines()
]
EVENTS = sum(len(segment["events"]) for case in CASES for segment in case["segments"])


@dataclass(frozen=True)
class Save:
    """The hook saved `name`, and left `files`; `policy` is what a ckptd beside it would be given.

    last: no further save in this run, so no pass beside it may be missed.
    """

    name: str
    step: int
    files: frozenset[str]
    policy: Policy
    last: bool


@dataclass(frozen=True)
class Outside:
    """Somebody else removed and created files."""

    remove: tuple[str, ...]
    create: tuple[str, ...]
    policy: Policy


def happenings(case: dict[str, Any]) -> Iterator[Save | Outside]:
    """What happens in the directory of `case` after its `pre` files are there."""
    for segment in case["segments"]:
        policy = policy_of(segment)
        outside = sorted(segment.get("outside") or [], key=lambda change: change["before_step"])
        for event in segment["events"]:
            while outside and outside[0]["before_step"] <= event["step"]:
                change = outside.pop(0)
                yield Outside(tuple(change.get("remove", ())), tuple(change.get("create", ())), policy)
            last = event is segment["events"][-1]
            yield Save(event["saved"], event["step"], frozenset(event["files"]), policy, last)


def policy_of(segment: dict[str, Any]) -> Policy:
    """The policy that stands for a hook's settings; the hook reads -1 and 0 as none."""
    (hook,) = segment["hooks"]
    template = hook["filename_tmpl"] or segment["runner"] + "_{}.pth"
    return Policy(
        max_keep=hook["max_keep_ckpts"] if hook["max_keep_ckpts"] > 0 else None,
        interval=hook["interval"] if hook["interval"] > 0 else None,
        templates=(template,),
    )
