"""Tasks of one's own, which are held to the contract of `base.Task` wherever they are asked: what a file's functions
return is checked before anything is made of it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from entropix.checkpoint.values import is_text
from entropix.config import MAX_INT32
from entropix.lab.tasks.base import DEV, Item, Task
from entropix.showing import shown


@dataclass(frozen=True)
class OwnTask:
    """A task of a file. Its methods raise a ValueError that names the file, the method and what came of it."""

    task: Task
    where: str

    def __post_init__(self) -> None:
        for part, expected in (("name", str), ("max_new_tokens", int), ("is_closed", bool)):
            if not isinstance(getattr(self.task, part), expected):
                raise self._wrong(part, f"of the type {expected.__name__}", getattr(self.task, part))
        if not 1 <= self.max_new_tokens <= MAX_INT32:
            raise self._wrong("max_new_tokens", "at least 1", self.max_new_tokens)

    @property
    def name(self) -> str:
        """See `base.Task`."""
        return self.task.name

    @property
    def max_new_tokens(self) -> int:
        """See `base.Task`."""
        return self.task.max_new_tokens

    @property
    def is_closed(self) -> bool:
        """See `base.Task`."""
        return self.task.is_closed

    def __getattr__(self, name: str) -> Any:
        """What it has beyond the contract, such as `coverage`."""
        if name.startswith("__"):  # of Python's own, as `copy` and `pickle` look for
            raise AttributeError(name)
        return getattr(self.task, name)

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`."""
        found: Any = self.task.items(seed, n, split)
        if not isinstance(found, list | tuple):
            raise self._wrong("items", "a list of Item", found)
        for item in found:
            self._check(item)
        counts = Counter(item.id for item in found)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise ValueError(
                f"{self.where}: items: two of them have the id {shown(twice)}; give each its own"
            )
        return list(found)

    def extract(self, item: Item, text: str) -> str | None:
        """See `base.Task`."""
        found = self.task.extract(item, text)
        if not isinstance(found, str | None):
            raise self._wrong("extract", "a text or None", found)
        return found

    def score(self, item: Item, text: str) -> float | None:
        """See `base.Task`."""
        found: Any = self.task.score(item, text)
        if found is None:
            return None
        if not isinstance(found, int | float | np.number | np.bool_) or not 0 <= found <= 1:
            raise self._wrong("score", "from 0 to 1, or None", found)
        return float(found)

    def _check(self, item: Any) -> None:
        """Raises a ValueError for an item of which results cannot be kept."""
        if not isinstance(item, Item):
            raise self._wrong("items", "a list of Item", item)
        if not is_text(item.id) or not item.id or not is_text(item.kind):
            raise self._wrong("items", "of ids and kinds that are texts", (item.id, item.kind))
        try:
            if not isinstance(item.data, Mapping):
                raise TypeError
            json.dumps([item.prompt, item.answers, dict(item.data)], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise self._wrong("items", "of data that JSON has, as a mapping", item.data) from None

    def _wrong(self, part: str, expected: str, found: Any) -> ValueError:
        return ValueError(f"{self.where}: {part} must be {expected}, got {shown(found)}")
