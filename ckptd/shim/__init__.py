"""What lives inside a training job: save when mmcv's hook does, average buffers, tell ckptd about the run.

Needs torch, and nothing that the daemon needs. Each name is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["CheckpointHook", "Progress", "average_buffers", "declare"]

if TYPE_CHECKING:
    from .buffers import average_buffers
    from .declaration import declare
    from .hook import CheckpointHook
    from .resume import Progress

_HOMES = {"CheckpointHook": "hook", "Progress": "resume", "average_buffers": "buffers", "declare": "declaration"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
