"""Rows of the user's own data: JSONL, JSON, CSV, TSV, parquet and arrow files, folders, hub datasets. Torch-free.

Every row is read or refused by its line: none is lost, merged or split in silence, and what was not read as usual
for its kind of file is said (`Rows.remarks`). `quoting` decides what a `"` is, `rows.text` what is text.
"""

from lorax.tasks.readers.datasets import read_hub
from lorax.tasks.readers.files import read
from lorax.tasks.readers.rows import Format, Row, Rows, text, written
from lorax.tasks.readers.sources import looks_local, read_splits

__all__ = ["Format", "Row", "Rows", "looks_local", "read", "read_hub", "read_splits", "text", "written"]
