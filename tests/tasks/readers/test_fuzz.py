"""Broken files of every kind: a task, or exactly one line; at once."""

import random

import pytest

from lorax.errors import UserError
from lorax.tasks import load

PIECES = [
    b'{"prompt": "a", "answer": "b"}', b'{"prompt": [{"role": "user", "content": "q"}], "answer": 1}', b'{"data": [',
    b"prompt,answer", b"prompt\tanswer", b"a,b", b"a\tb", b'"a","b"', b"\n", b"\r\n", b"\r", b'"', b'""', b"\t",
    b"sep=;", b",", b";", b"[", b"]", b"{", b"}", b":", b"\\", b"\x00", b"\xff",
    "é".encode(), b"\xed\xa0\xbd", b"\xef\xbb\xbf",
    b"\\ud800", b"null", b"NaN", b"1e999", b"1" * 50,
]  # fmt: skip
SUFFIXES = ["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "csv.gz", "jsonl.bz2", "jsonl.xz", "jsonl.zst"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_broken_file_is_one_line(tmp_path, suffix):
    generator, path, refused = random.Random(suffix), tmp_path / f"a.{suffix}", 0
    for number in range(20):
        head = {"csv": b"prompt,answer\n", "tsv": b"prompt\tanswer\n"}.get(suffix, b"") if number % 2 else b""
        lines = [b"".join(generator.choices(PIECES, k=generator.randrange(12))) for _ in range(generator.randrange(30))]
        path.write_bytes(head + b"\n".join(lines))
        spec = {"name": "jsonl"} if number % 3 else {"name": "text_classification", "text": "prompt", "label": "answer"}
        try:
            load({**spec, "path": str(path)}, 0)
        except UserError as error:
            line = str(error).replace(str(tmp_path), "")
            assert "\n" not in line and len(line) < 300, line
            refused += 1
    assert refused > 9
