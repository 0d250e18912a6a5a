"""`lorax run|tables|mix|push`: one word before the arguments of `python -m lorax.<word>`, and what a shell completes.

Nothing is imported before the word is known, so that `lorax --help` and completion answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": ("lorax.run", "one run, a grid (-m), a study (+study=)"),
    "tables": ("lorax.tables", "tables and figures from records; verify, audit, import"),
    "mix": ("lorax.mix.__main__", "search a mixture of saved adapters"),
    "push": ("lorax.push.__main__", "a run's adapter to the hub, in PEFT's format, with a model card"),
}
"""Word -> module that has `main()`, and what it does."""


def main() -> None:
    """Run the command line of the word that stands first; without one, that of `lorax run`."""
    words = sys.argv[1:]
    if words[:1] == ["-sc"] and "COMP_LINE" in os.environ:
        _complete(os.environ["COMP_LINE"], words)
        return
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return
    first = words[0]
    if first in COMMANDS:
        _start(first, words[1:])
    elif "=" in first or first.startswith("-"):  # `lorax init=pissa rank=4`
        _start("run", words)
    else:
        from lorax.errors import near

        print(f"lorax: {first}: no such command; {near(first, list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  lorax {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["lorax: low-rank adaptation variants, exact and compared fairly.", "", *lines, "",
                      "lorax <command> --help says more; python -m lorax.<command> is the same command.",
                      'Completion: eval "$(lorax -sc install=bash)"'])  # fmt: skip


def _start(command: str, words: Sequence[str]) -> None:
    sys.argv[1:] = words
    sys.exit(importlib.import_module(COMMANDS[command][0]).main())


def _complete(line: str, words: Sequence[str]) -> None:
    """Print what may stand at the end of a line: a command; after `run`, or without a command, what Hydra offers."""
    typed = line.split()
    at_second = len(typed) == 1 or (len(typed) == 2 and not line.endswith(" "))
    if at_second and "=" not in line:
        begun = typed[1] if len(typed) == 2 else ""
        print(" ".join(name for name in COMMANDS if name.startswith(begun)))
        return
    if typed[1] in COMMANDS:
        if typed[1] != "run":
            return
        os.environ["COMP_LINE"] = line.replace(f" {typed[1]}", "", 1)
    _start("run", words)
