"""What is learnt: built-in tasks by name, or a user's own as ``"package.module:function"``."""

from edgeprune.tasks.task import Task, evaluate, get

__all__ = ["Task", "evaluate", "get"]
