"""Tasks: examples in fixed splits, how they are asked, and how an answer is scored. Torch-free."""

from lorax.tasks.base import Example, Task
from lorax.tasks.registry import build, load, names, register

__all__ = ["Example", "Task", "build", "load", "names", "register"]
