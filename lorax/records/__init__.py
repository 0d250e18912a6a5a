"""What a run leaves behind: records, their store, their digests. Torch-free."""

from lorax.records.guarded_json import Damaged, parse_json, read_json, read_lines
from lorax.records.record import SCHEMA, RunRecord, canonical, run_id
from lorax.records.store import Store, check_name, digest_file
from lorax.records.writing import Unwritable, check_space, check_writable, write_atomic, write_together

__all__ = [
    "SCHEMA", "Damaged", "RunRecord", "Store", "Unwritable", "canonical", "check_name", "check_space", "check_writable",
    "digest_file", "parse_json", "read_json", "read_lines", "run_id", "write_atomic", "write_together",
]  # fmt: skip
