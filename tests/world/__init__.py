"""A work dir to which things happen, the passes of ckptd over it, and a model that knows what must be left of it.

job, people: what happens. onlooker: what must not. place: what is there by now. world: the passes, and all together.
"""

from .place import DIRECTORIES, FILES, SERIES, TRUNCATED, WHOLE, WRITING, ZEROED
from .reader import Reader
from .world import World

__all__ = ["DIRECTORIES", "FILES", "SERIES", "TRUNCATED", "WHOLE", "WRITING", "ZEROED", "Reader", "World"]
