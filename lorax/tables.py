"""`python -m lorax.tables [name]`: rebuild tables and figures from the records alone.

Reports are imported where they are needed: they load scipy and matplotlib, which `--help` and a list do not need.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from lorax.errors import UserError, near, one_line
from lorax.records import Store, check_name

USAGE = """\
python -m lorax.tables                        list what has records
python -m lorax.tables <name>                 rebuild the tables (of a study: the figures too)
python -m lorax.tables rescore=<name>         score kept completions under every published extraction rule
python -m lorax.tables import=<folder>        intervals and separability for PEFT method_comparison JSONs
                                              or lm-evaluation-harness samples_*.jsonl
python -m lorax.tables verify=<name>          check ids, scores against items, digests, design, leftovers; `all`: every
                                              name. Exit status 0: clean, 1: findings, a line each (json=true: as JSON)
python -m lorax.tables audit=<name>           check a study's evidence: as verify, and chain, copies, dropped and unused
                                              runs, siblings, dates, machines, commits; `all`: every name.
                                              Exit status 0: it holds together, 1: it does not (json=true: as JSON)
options: results_dir=<folder> (default: results)   items=<n> with import=   split=validation with rescore="""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, or 2 after one clear line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(USAGE)
        return 0
    before, warnings.formatwarning = warnings.formatwarning, _as_line
    try:
        name, options = _parse(arguments)
        if "verify" in options:
            from lorax.reports.verify import verify_text

            text, clean = verify_text(_store(options), options["verify"], _flag(options, "json"))
            print(text, end="")
            return 0 if clean else 1
        if "audit" in options:
            from lorax.reports.audit.audit import audit_text

            text, whole = audit_text(_store(options), options["audit"], _flag(options, "json"))
            print(text, end="")
            return 0 if whole else 1
        print(run(name, options), end="")
    except BrokenPipeError:  # `| head` has seen enough
        return 0
    except Exception as error:
        if os.environ.get("LORAX_TRACEBACK"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = before
    return 0


def _as_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n"


def _store(options: dict[str, str]) -> Store:
    return Store(options.get("results_dir", "results"))


def run(name: str | None, options: dict[str, str]) -> str:
    """Write the files of one command; return the text that it prints.

    Raises:
        UserError: unknown name or folder, or nothing to read in it.
    """
    store = _store(options)
    if "import" in options:
        from lorax.reports.published.separability import write_imported

        text, paths = write_imported(options["import"], store.root, _whole(options, "items"))
        return f"{text}\n{_written(paths)}"
    if "rescore" in options:
        from lorax.reports.rescore import write_rescored

        text, paths = write_rescored(store, options["rescore"], options.get("split", "test"))
        return f"{text}\n{_written(paths)}"
    if name is not None:
        return draw(store, name)
    names = store.names()
    return "".join(f"{item}\n" for item in names) or f"no records in {store.root}\n"


def draw(store: Store, name: str) -> str:
    """Rebuild everything of `name`: a study's tables and figures, else the table of a sweep.

    Returns:
        The Markdown text, and a line for each file written.
    """
    from lorax.reports.write import write_table

    text, paths = write_table(store, name)
    return f"{text}\n{_written(paths)}"


def _written(paths: list[Path]) -> str:
    return "".join(f"wrote {path}\n" for path in paths)


def _whole(options: dict[str, str], key: str) -> int | None:
    if key not in options:
        return None
    if not options[key].isdigit() or int(options[key]) < 1:
        raise UserError(f"{key}={options[key]}: a whole number from 1 is needed")
    return int(options[key])


def _flag(options: dict[str, str], key: str) -> bool:
    if options.get(key, "false") not in ("true", "false"):
        raise UserError(f"{key}={options[key]}: true or false")
    return options.get(key) == "true"


def _parse(arguments: list[str]) -> tuple[str | None, dict[str, str]]:
    known = ("import", "rescore", "verify", "audit", "results_dir", "items", "split", "json")
    names, options = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            names.append(argument)
        elif key not in known:
            raise UserError(f"unknown option {key!r}; {near(key, known)}")
        elif not value:
            raise UserError(f"{key}= needs a value")
        else:
            options[key] = value
    if len(names) + sum(key in options for key in ("import", "rescore", "verify", "audit")) > 1:
        raise UserError(f"one table at a time, got {', '.join(arguments)}")
    for name in [*names, *([options["rescore"]] if "rescore" in options else [])]:
        check_name(name)
    return (names[0] if names else None), options


if __name__ == "__main__":
    sys.exit(main())
