"""The table of known names: what is recognised without being asked for, and the frameworks' own pointers.

Pure. Sources: the frameworks named; each row says what the framework itself writes.
"""

from __future__ import annotations

from .naming import Template

_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", "")  # the last: a directory of shards

DEFAULT_TEMPLATES = tuple(Template(f"{unit}_{{}}{ending}") for unit in ("epoch", "iter") for ending in _ENDINGS)

# Text files in a work dir with which a framework names the checkpoint it would resume from.
FRAMEWORK_POINTERS = (
    "last_ckpt",  # ckptd's own, also when --pointer has since renamed it
    "last_checkpoint",  # mmengine (absolute path), fvcore and detectron2 (base name)
    "latest",  # DeepSpeed (tag)
)

# Which pointer is believed when a work dir is met for the first time and its order of writing is in doubt.
FIRST_CONTACT_POINTERS = ("last_ckpt", "last_checkpoint", "latest.pth")  # the last: mmcv 1.x, a symlink


def takes_directories(template: Template) -> bool:
    """Whether a directory may bear a name of `template`: only where the name has no file ending."""
    return "." not in template.text.rpartition("}")[2]
