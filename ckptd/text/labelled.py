"""A log whose lines begin with the work dir they are about, where there are several."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any


class Labelled(logging.LoggerAdapter[logging.Logger]):
    """Made with `{"label": text}`; an empty label adds nothing."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        label = self.extra["label"] if self.extra else ""
        return (f"{label}: {msg}" if label else msg), kwargs
