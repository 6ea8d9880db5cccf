"""Say what a run of .ci/run tested and what it did not. Exits 1 unless all of it passed.

Counts come from the reports that pytest wrote, one for each make target. A target that should have one and
has none ran no test: that is a failure.
"""

import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

TARGETS = {"test": True, "lint": False, "smoke": False, "real": True, "root": True}  # has it tests?
# A machine may lack a kernel feature; an install that is lacking is this script's own failure.
_NOT_INSTALLED = re.compile(r"could not import|no module named|not installed|not found|is missing|on PATH", re.I)


def main(reports: Path, sections: list[str]) -> int:
    ran = {target: (status, seconds) for target, status, seconds in map(str.split, sections)}
    total = dict.fromkeys(("passed", "failed", "skipped"), 0)
    wrong, skips = [], []
    print("\n======== summary")
    for target, has_tests in TARGETS.items():
        status, seconds = ran.get(target, ("not reached", "0"))
        counts, reasons = _read(reports / f"{target}.xml")
        if status == "ok" and has_tests and not counts["passed"]:
            status = "no test ran"
        if status == "needs-root":
            status = "not run: needs root"
        elif status != "ok":
            wrong.append(f"make {target}" + (f": {status}" if status != "failed" else ""))
        for name, number in counts.items():
            total[name] += number
        skips += [(target, *reason) for reason in reasons]
        told = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        print(f"make {target:<6} {status:<12} {seconds:>4} s  {told}".rstrip())

    for target, test, reason in skips:
        print(f"skipped in make {target}: {test}: {reason}")
        if os.environ.get("CI") == "true" and _NOT_INSTALLED.search(reason):
            wrong.append(f"make {target}: {test} was skipped for lack of an install")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    for line in wrong:
        print(f"FAILED {line}")
    if not wrong:
        unrun = [target for target in TARGETS if ran[target][0] == "needs-root"]
        print(f"passed, but make {unrun[0]} was not run: it needs root" if unrun else "all passed")
    return 1 if wrong else 0


def _read(report: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The counts of one report, and the name and reason of each test that was skipped."""
    counts, reasons = dict.fromkeys(("passed", "failed", "skipped"), 0), []
    if not report.exists():
        return counts, reasons
    for case in ET.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif skipped is None:
            counts["passed"] += 1
        else:
            counts["skipped"] += 1
            reasons.append((f"{case.get('classname')}::{case.get('name')}", skipped.get("message", "")))
    return counts, reasons


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
