"""Keep the right training checkpoints and delete the rest, beside the job and never in its way.

`ckptd.plan`, `prune`, `latest` and `verify` are what the commands of the same names do; each is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CkptdError", "Policy", "latest", "plan", "prune", "verify"]

if TYPE_CHECKING:
    from .api import latest, plan, prune, verify
    from .core.policy import Policy
    from .errors import CkptdError

_HOMES = {"Policy": "core.policy", "CkptdError": "errors"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        if name not in _HOMES:
            from .python import why_not_here

            reason = why_not_here(f"ckptd.{name}")
            if reason is not None:
                raise ImportError(reason)
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
