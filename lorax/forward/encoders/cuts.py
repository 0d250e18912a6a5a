"""What is said where texts are longer than a model takes."""

from __future__ import annotations

import warnings


def say_cut(task: str, split: str, cut: int, total: int, bound: int | None, what: str = "texts") -> None:
    """Warn, once a split, that some texts were cut.

    Args:
        task: its name.
        split: of the texts.
        cut: how many.
        total: of how many.
        bound: tokens that the model takes.
        what: was cut.
    """
    if cut:
        line = f"{task} {split}: {cut:,} of {total:,} {what} are longer than the {bound} tokens of the model: cut there"
        warnings.warn(line, stacklevel=3)
