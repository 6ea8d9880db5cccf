"""Which part of ckptd runs on which Python. Parsed and imported by all of them, from 3.9 on."""

from __future__ import annotations

import sys

DAEMON_NEEDS = (3, 11)


def why_not_here(what: str) -> str | None:
    """Why `what` (the command, or a function of the daemon's) does not run on this Python, and what to do; or None."""
    if sys.version_info >= DAEMON_NEEDS:
        return None
    needs, this = (".".join(map(str, version[:2])) for version in (DAEMON_NEEDS, sys.version_info))
    return (
        f"{what} needs Python {needs} or newer, and this is {this}. Install ckptd apart, in an environment of its own: "
        f"`make install PYTHON=python{needs}`; here ckptd.shim works"
    )
