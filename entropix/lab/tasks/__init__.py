"""Tasks: items to be asked, and what is right. Behind one contract (`base.Task`), by name or from a file."""

from entropix.lab.tasks.base import DEV, HELD_OUT, SPLITS, Item, Task, digest
from entropix.lab.tasks.registry import known, resolve

__all__ = ["DEV", "HELD_OUT", "SPLITS", "Item", "Task", "digest", "known", "resolve"]
