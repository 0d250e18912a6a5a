"""The file of a chain: whole lines only, each naming the one before, whatever a killed writer left."""

from __future__ import annotations

import hashlib

import pytest

from lorax.records.chain import append, entries, head, read_chain


def facts(path):
    return [(line.number, line.kind, line.fits) for line in read_chain(path)]


def test_lines_name_the_line_before(tmp_path):
    path = tmp_path / "studies/a/b.chain.jsonl"
    assert read_chain(path) == [] and head(path) is None
    append(path, [])
    assert not path.exists()
    append(path, [{"kind": "design", "at": "2026-01-01"}])
    append(path, [{"kind": "record", "run": "x" * 200_000}, {"kind": "record", "run": "ü\n"}])  # longer than one read
    append(path, [{"kind": "record"}])
    assert facts(path) == [(1, "design", True), (2, "record", True), (3, "record", True), (4, "record", True)]
    lines = read_chain(path)
    assert lines[0].at == "2026-01-01" and lines[2].facts["run"] == "ü\n" and head(path) == lines[-1].digest
    raw = path.read_bytes().split(b"\n")
    assert [line.facts["previous"] for line in lines] == ["", *(hashlib.sha256(line).hexdigest() for line in raw[:3])]


@pytest.mark.parametrize("torn", [b'{"kind":"rec', b'{"kind":"record"}', b"\xff", b"{" * 100_000])
@pytest.mark.parametrize("before", [0, 2])
def test_what_a_killed_writer_left_of_a_line_goes(tmp_path, torn, before):
    path = tmp_path / "chain.jsonl"
    append(path, [{"kind": f"k{at}"} for at in range(before)])
    with path.open("ab") as file:
        file.write(torn)
    assert len(read_chain(path)) == before
    append(path, [{"kind": "next"}])
    assert facts(path) == [*((at + 1, f"k{at}", True) for at in range(before)), (before + 1, "next", True)]


def test_any_change_shows_in_the_next_line(tmp_path):
    path = tmp_path / "chain.jsonl"
    append(path, [{"kind": "k", "value": at} for at in range(5)])
    raw = path.read_bytes()
    for at in range(len(raw) - len(raw.splitlines()[-1]) - 1):  # every byte before the last line
        changed = bytearray(raw)
        changed[at] ^= 1
        assert not all(line.fits for line in entries(bytes(changed))), at
