"""What a `"` is in a table: no row is ever lost to one."""

import csv
import io
import random

import pytest

from lorax.errors import UserError
from lorax.tasks.readers import Format, read


def rows(path, content, **format):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [tuple(fields.values()) for _, fields in read(path, Format(**format))]


PLAIN = 'text\tlabel\n"a fine film\t1\nbad film\t0\nwhat a "\t0\nok film\t1\n'


def test_a_lone_quote_in_a_tsv_swallows_nothing(tmp_path):
    assert rows(tmp_path / "a.tsv", PLAIN) == [
        ('"a fine film', "1"), ("bad film", "0"), ('what a "', "0"), ("ok film", "1")
    ]  # fmt: skip
    assert read(tmp_path / "a.tsv").rows[2][0].endswith("a.tsv, line 4")
    assert rows(tmp_path / "b.tsv", PLAIN, quotes="syntax") == [
        ("a fine film\t1\nbad film\t0\nwhat a ", "0"), ("ok film", "1")
    ]  # fmt: skip


@pytest.mark.parametrize("name, content, expected, remark", [
    ("wrapped text", 'text\tlabel\n"a"\t1\nb\t0\n', [('"a"', "1"), ("b", "0")], ""),
    ("doubled inside", 'text\tlabel\n"so ""so"""\t1\nb\t0\n', [('so "so"', "1"), ("b", "0")], "as syntax"),
    ("all quoted", '"text"\t"label"\n"a"\t"1"\n"b"\t"0"\n', [("a", "1"), ("b", "0")], "as syntax"),
    ("line break", 'text\tlabel\n"a\nb"\t1\nc\t0\n', [("a\nb", "1"), ("c", "0")], "as syntax"),
    ("tab", 'text\tlabel\n"a\tb"\t1\nc\t0\n', [("a\tb", "1"), ("c", "0")], "as syntax"),
    ("carriage returns", "text\tlabel\ra\t1\rb\t0\r", [("a", "1"), ("b", "0")], ""),
    ("other breaks", "text\tlabel\na\u2028b\x0bc\x85\t1\n", [("a\u2028b\x0bc\x85", "1")], ""),
])  # fmt: skip
def test_tabs_mean_no_quoting_unless_the_file_shows_a_writer_that_quotes(tmp_path, name, content, expected, remark):
    assert rows(tmp_path / "a.tsv", content) == expected
    assert remark in "".join(read(tmp_path / "a.tsv").remarks) and bool(read(tmp_path / "a.tsv").remarks) == bool(
        remark
    )


@pytest.mark.parametrize("name, content, expected, remark", [
    ("comma and break", 'text,label\n"a, b\nc",1\nd,0\n"e, f",1\n', [("a, b\nc", "1"), ("d", "0"), ("e, f", "1")], ""),
    ("code", 'text,label\n"f(a,\n  b)",1\nd,\n"e, f",1\n', [("f(a,\n  b)", "1"), ("d", ""), ("e, f", "1")], ""),
    ("stray in the middle", 'text,label\na "b" c,1\n6" pipe,0\n', [('a "b" c', "1"), ('6" pipe', "0")], ""),
    ("stray in front", 'text,label\n"a" b,1\nc,0\n', [('"a" b', "1"), ("c", "0")], "as text"),
    ("never closed", 'text,label\n"a,1\nb,0\n', [('"a', "1"), ("b", "0")], "as text"),
    ("byte order mark", b"\xef\xbb\xbftext,label\r\na,1\r\n\r\nb,0\r\n", [("a", "1"), ("b", "0")], "1 blank line"),
    ("semicolons", "text;label\na, b;1\nc;0\n", [("a, b", "1"), ("c", "0")], "by semicolons"),
    ("tabs", 'text\tlabel\na, b\t1\n"c\t0\n', [("a, b", "1"), ('"c', "0")], "by tabs"),
    ("bars", "text|label\na|1\n", [("a", "1")], "by bars"),
    ("spaces", 'text, label\n"a, b", "1"\n', [("a, b", "1")], ""),
    ("Excel", "sep=;\r\ntext;label\r\na;1\r\n", [("a", "1")], "by semicolons"),
    ("a long field", "text,label\n" + "x" * 200_000 + ",1\n", [("x" * 200_000, "1")], ""),
    ("leading zeros", "text,label\n007,1.0\n", [("007", "1.0")], ""),
])  # fmt: skip
def test_commas(tmp_path, name, content, expected, remark):
    assert rows(tmp_path / "a.csv", content) == expected
    assert remark in "".join(read(tmp_path / "a.csv").remarks) and bool(read(tmp_path / "a.csv").remarks) == bool(
        remark
    )
    assert csv.field_size_limit() == 131072


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", PLAIN.replace("\t", ","), 'line 2: a " opens that closes in line 4.*task.quotes=text'),
    ("a.csv", PLAIN.replace("\t", ",") + '"b, c",1\n', 'line 2: a " opens that closes in line 4'),
    ("a.tsv", 'text\tlabel\n"a\t1\nb\nc"\t0\n', 'line 2: a " opens that closes in line 4'),
    ("a.tsv", "text\tlabel\na\t1\nb\rc\t0\n", "line 3: 1 column where the header has 2"),
    ("a.csv", "text,label\n\n\na,1\nb,1,2\n", "line 5: 3 columns where the header has 2"),
    ("a.csv", "text,label\na\x00b,1\n", "line 2: a NUL byte"),
    ("a.csv", "text,label\nok,1\n".encode("utf-16"), "UTF-16"),
    ("a.csv", "text,label\nok,1\ncafé,1\n".encode("latin-1"), r"line 3: not UTF-8 \(byte 0xe9\)"),
    ("a.csv", "", "the file is empty"),
    ("a.csv", "\n\n", "the file is empty"),
    ("a.csv", "text,label\n", "no rows under the header"),
    ("a.txt", "text,label\na,1\n", "tabs separate"),
])  # fmt: skip
def test_what_cannot_be_told_is_one_line_with_its_number(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words) as caught:
        rows(tmp_path / name, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_files_without_a_header(tmp_path):
    assert rows(tmp_path / "a.tsv", "a\t1\nb\t0\n", columns=("text", "label")) == [("a", "1"), ("b", "0")]
    assert read(tmp_path / "a.tsv", Format(columns=("text", "label"))).rows[0][1] == {"text": "a", "label": "1"}
    with pytest.raises(UserError, match="line 1: 2 columns where .* 3"):
        read(tmp_path / "a.tsv", Format(columns=("text", "label", "more")))
    with pytest.raises(UserError, match="line 1: a header, so that task.columns is not needed"):
        rows(tmp_path / "b.tsv", "text\tlabel\na\t1\n", columns=("text", "label"))
    with pytest.raises(UserError, match="line 1: the header has no 'label'; choose from a, 1; .*task.columns"):
        read(tmp_path / "a.tsv", Format(used=frozenset(["text", "label"])))
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="has names of its own"):
        read(tmp_path / "a.jsonl", Format(columns=("text",)))


ALPHABET = ["a", " ", '"', '""', ",", ";", "\n", "\r\n", "'", "é", ", ", "1"]


@pytest.mark.parametrize("suffix, delimiter", [("csv", ","), ("csv", ";"), ("tsv", "\t")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_python_s_csv_writes_comes_back_or_is_asked_about(tmp_path, suffix, delimiter, quoting):
    """25 tables of odd fields: read as written, or refused by a line; never other rows."""
    generator, asked = random.Random(f"{suffix}{delimiter}{quoting}"), 0
    path = tmp_path / f"a.{suffix}"
    for _ in range(25):
        table = [
            ["".join(generator.choices(ALPHABET, k=generator.randrange(1, 8))) or "x", generator.choice("01")]
            for _ in range(generator.randrange(1, 6))
        ]
        if suffix == "tsv" and quoting == csv.QUOTE_MINIMAL and all('"' not in text for text, _ in table):
            table[0][0] = 'some "quoted" words'  # else nothing shows whether quotes are syntax
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(
            [["text", "label"], *table]
        )
        try:
            assert rows(path, buffer.getvalue()) == [tuple(row) for row in table]
        except UserError as error:
            assert "task.quotes=" in str(error)
            assert rows(path, buffer.getvalue(), quotes="syntax") == [tuple(row) for row in table]
            asked += 1
    assert asked < 5


@pytest.mark.parametrize("delimiter, suffix", [("\t", "tsv"), (",", "csv")])
def test_tables_written_without_quoting_keep_their_rows(tmp_path, delimiter, suffix):
    """25 tables whose quotes are characters: every physical line is a row, or the file is refused by a line."""
    generator = random.Random(suffix)
    letters = ["a", "b", " ", '"', '" ', "'"]
    for _ in range(25):
        table = [
            [
                "x" + "".join(generator.choices(letters, k=5))
                if generator.random() < 0.7
                else '"' + generator.choice("ab"),
                "1",
            ]
            for _ in range(6)
        ]
        content = "\n".join(delimiter.join(row) for row in [["text", "label"], *table]) + "\n"
        try:
            found = rows(tmp_path / f"a.{suffix}", content)
        except UserError as error:
            assert "task.quotes=" in str(error)
            found = rows(tmp_path / f"a.{suffix}", content, quotes="text")
        assert found == [tuple(row) for row in table]
