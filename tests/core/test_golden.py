"""The rule, and the replay of missed saves, against what the real hook left: no disk, no protections."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ckptd.core.naming import Template
from ckptd.core.plan import SKIP
from ckptd.core.policy import Stepped
from tests.core.directory import Directory
from tests.golden_cases import CASES, EVENTS, Outside, happenings, policy_of


def test_the_golden_cases_are_all_there() -> None:
    assert (len(CASES), EVENTS) == (300, 2449)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_rule_alone_leaves_what_the_hook_left(case: dict) -> None:
    files = set(case["pre"])
    for each in happenings(case):
        if isinstance(each, Outside):
            files = files - set(each.remove) | set(each.create)
            continue
        files.add(each.name)
        policy = each.policy
        if policy.max_keep and policy.interval:
            template = Template(*policy.templates)
            there = {template.step_of(name) for name in files}
            gone = Stepped(policy.max_keep, policy.interval).walk(each.step, there.__contains__)
            files -= {template.name_of(step) for step in gone}
        assert each.files == files


@pytest.mark.parametrize("missed", [0.0, 0.3, 0.7, 0.95])
def test_any_passes_may_be_missed_and_the_end_is_the_hooks(missed: float) -> None:
    """Confluence: files = the hook's files + what is owed and one of the K newest, at every pass that is made.

    A change from outside that falls between two passes leaves no trace of its time, so passes stand around those.
    """
    compared = 0
    for case in CASES:
        for seed in range(3 if missed else 1):
            rng = random.Random(f"{case['id']} {seed}")
            directory = Directory(case["pre"], ended=False)
            if case["pre"] or rng.random() < 0.5:
                directory.reconcile(replace(policy_of(case["segments"][0]), max_keep=None))
            for each in happenings(case):
                if isinstance(each, Outside):
                    directory.change(each)
                    continue
                directory.write(each.name)
                if each.last or rng.random() >= missed:
                    owed = directory.owed(each.policy)
                    assert each.files | owed == set(directory.written), (case["id"], seed, each.step)
                    compared += 1
    assert compared > 500


def test_what_is_owed_is_rare_and_only_where_the_hook_would_keep_too_few() -> None:
    """A veto needs its reason: at every event the extra files are among the K newest."""
    extra = 0
    for case in CASES:
        directory = Directory(case["pre"], ended=False)
        for each in happenings(case):
            if isinstance(each, Outside):
                directory.written = {n: t for n, t in directory.written.items() if n not in each.remove}
                for name in each.create:
                    directory.write(name)
                continue
            directory.write(each.name)
            decided = directory.reconcile(each.policy)
            owed = [d for d in decided.decisions if d.decision == SKIP]
            extra += bool(owed)
            for decision in owed:
                assert "newest" in decision.reasons[0], decision
    assert extra < 30  # of 2,449
