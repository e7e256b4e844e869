"""What is learnt: built-in tasks by name, or a user's own as ``"package.module:function"``."""

from edgeprune.tasks.task import Task, call, evaluate, evaluate_by_class, get

__all__ = ["Task", "call", "evaluate", "evaluate_by_class", "get"]
