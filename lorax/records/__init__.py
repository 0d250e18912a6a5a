"""What a run leaves behind: records, their store, their digests. Torch-free."""

from lorax.records.record import SCHEMA, RunRecord, canonical, run_id
from lorax.records.store import Store, Unwritable, check_writable, digest_file, write_atomic

__all__ = [
    "SCHEMA", "RunRecord", "Store", "Unwritable", "canonical", "check_writable", "digest_file", "run_id",
    "write_atomic",
]  # fmt: skip
