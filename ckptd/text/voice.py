"""What is said of one work dir, and what of that was said already, so that no pass says it again.

It outlives the passes and the rest of a work dir, so it holds nothing of one that is in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any


class Voice(logging.LoggerAdapter[logging.Logger]):
    """The log of one work dir. label: its path, where a log has several; a line that does not name it begins with it.

    Each kind of trouble is a topic, `of` is what has it. A topic belongs to one thread.
    """

    def __init__(self, label: str = "") -> None:
        super().__init__(logging.getLogger("ckptd"), None)
        self.label = label
        self._said: dict[str, dict[str, Any]] = {}

    def log(self, level: int, msg: object, *args: object, **more: Any) -> None:
        """As a logger's, with the label."""
        if self.isEnabledFor(level):
            text = str(msg) % args if args else str(msg)
            self.logger.log(level, "%s", text if self.label in text else f"{self.label}: {text}", **more)

    def once(
        self, topic: str, text: str, *, of: str = "", level: int = logging.WARNING, news: object = None,
        aloud: bool = True,
    ) -> None:  # fmt: skip
        """Say it, unless it was the last thing said of this: a wait of a week is one line.

        news: by what the last thing is known, if not by its words. aloud: False where a person has it from elsewhere.
        """
        news = text if news is None else news
        if self._said.get(topic, {}).get(of) != news:
            self._said.setdefault(topic, {})[of] = news
            if aloud:
                self.log(level, "%s", text)

    def all_of(self, topic: str, texts: Mapping[str, str]) -> None:
        """Say once each what there is of a topic now. What is not among it is in order, and news if it comes back."""
        for of in self._said.get(topic, {}).keys() - texts.keys():
            self.forget(topic, of=of)
        for of, text in texts.items():
            self.once(topic, text, of=of)

    def when_doubled(
        self, topic: str, n: int, text: Callable[[], str], *, of: str = "", level: int = logging.WARNING,
        aloud: bool = True,
    ) -> None:  # fmt: skip
        """Say it whenever n has become twice what it was when that was said last, or twice 1."""
        if n >= 2 * self._said.get(topic, {}).get(of, 1):
            self.once(topic, text(), of=of, level=level, news=n, aloud=aloud)

    def has_said(self, topic: str) -> bool:
        """Whether anything of this topic is not in order, as far as was said."""
        return topic in self._said

    def forget(self, topic: str, *, of: str = "") -> None:
        """It is in order: what comes after that is news."""
        said = self._said.get(topic, {})
        said.pop(of, None)
        if not said:
            self._said.pop(topic, None)
