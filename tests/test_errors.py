"""Near misses: across prefixes and cases, and never the word itself."""

import pytest

from lorax.errors import near


@pytest.mark.parametrize("given, options, tail", [
    ("task.pth", ["task.path", "task.name", "rank"], "did you mean 'task.path'?"),
    ("task.path", ["task.path", "task.paths"], "did you mean 'task.paths'?"),
    ("task.path", ["task.path", "task.name"], "choose from task.name"),
    ("path", ["task.path", "model.path", "rank"], "did you mean 'task.path' or 'model.path'?"),
    ("task.zzz", ["task.lr", "task.path"], "choose from task.lr, task.path"),  # a common prefix is no likeness
    ("trian.clip", ["train.clip", "rank"], "did you mean 'train.clip'?"),
    ("LoRA", ["lora", "pissa"], "did you mean 'lora'?"),
    ("lora", ["lora"], "there is no other"),
    ("lora", ["lora", "lora", "svft"], "choose from svft"),
    ("", ["a", "b"], "choose from a, b"),
    (None, [1, 2], "choose from 1, 2"),
    ("text", ["The " + "sailors " * 20], "choose from The sailors sailors sailors sailors s..."),
    ("zz", [50 * letter for letter in "abcdef"], f"choose from {', '.join(37 * x + '...' for x in 'abcd')}, ..."),
])  # fmt: skip
def test_near_misses(given, options, tail):
    assert near(given, options) == tail
