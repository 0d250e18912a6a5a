"""`lorax push <run> <owner>/<name>`: a finished run's adapter to the hub, in PEFT's format, with a model card."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lorax.errors import UserError
from lorax.push.words import Order, parse
from lorax.records import Store
from lorax.run import calm_threads, stoppable
from lorax.running.messages import explain

USAGE = """\
lorax push <run> <owner>/<name> [key=value ...]

<run> is a run id, its first digits, <name>/<run id>, or the folder that save= wrote. The adapter goes to the hub in
PEFT's format, checked against stock PEFT, with the base's tokenizer and a model card: base and data with their commits,
method, equation and source, scores, the row of the study's table with its interval, the command line, versions.

--dry-run             write the folder only; nothing is sent, and no token is needed
folder=<folder>       keep the folder here
private=true          a private repository; one that is there and public gets nothing
rank=<n>              no layer of more than this rank, cut by SVD; default: exact
message=<text>        of the commit
results_dir=<folder>  where the records are (default: results)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 2 after one clear line, 130 or 143 when it was stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help", "help") for word in words):
        print(USAGE)
        return 0
    try:
        calm_threads(os.environ)
        with stoppable():
            print("\n".join(push(parse(words))))
    except KeyboardInterrupt as stop:
        print("lorax: stopped; nothing was uploaded unless its address stands above", file=sys.stderr)
        return 128 + int((stop.args or (signal.SIGINT,))[0])
    except Exception as error:
        if os.environ.get("LORAX_TRACEBACK") and not isinstance(error, UserError):
            raise
        print(f"lorax: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def push(order: Order) -> list[str]:
    """Do what was ordered; return the lines that say what was done.

    Raises:
        UserError: see `parse`, `find`, `write` and `upload`; nothing is sent then.
    """
    from lorax.push.folder import refuse_foreign, write
    from lorax.push.saved import find
    from lorax.push.upload import signed_in, upload

    if order.folder is not None:
        refuse_foreign(order.folder)
    saved = find(order.run, Store(order.results_dir))
    api = None if order.dry_run else signed_in()
    with tempfile.TemporaryDirectory() as temporary:
        folder = order.folder or Path(temporary) / "adapter"
        written = write(saved, folder, order.repo, order.rank)
        exact = f", relative error up to {written.error:.2g}" if written.error else ""
        lines = [f"{'adapter':<12}run {saved.record.run_id}, rank {written.rank} in PEFT's format{exact}"]
        if order.folder is not None:
            lines.append(f"{'folder':<12}{folder}: {', '.join(written.files)}")
        if api is not None and order.repo is not None:
            message = order.message or f"Adapter of run {saved.record.run_id}"
            lines.append(f"{'repository':<12}{upload(api, folder, order.repo, order.private, message)}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
