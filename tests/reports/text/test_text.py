"""Numbers and documents as text; LaTeX that holds together, and compiles where there is an engine."""

from __future__ import annotations

import re
import shutil
import subprocess

from lorax.reports.text import html, latex, markdown, numbers
from lorax.reports.text.document import Document, Part, Picture, Table

DOCUMENT = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\\end{document}\n"


def check_latex(text):
    """Every environment closes, every row has as many cells as its table has columns, nothing raw is left."""
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in rows)
    bare = re.sub(r"(?m)^%.*$|\\[%#_&$]|\$[^$]*\$", "", text)
    assert not re.search(r"[%#_]", re.sub(r"\\(label|caption)\{[^}]*\}", "", bare))
    assert text.isascii(), "inputenc must not matter"


def test_latex_of_awkward_text(tmp_path):
    body = [["lora_ga 100 %", "1.0 [∞, 2] & more"], ["a|b \\ ~^{}#$", "1e-3 ↑ ± <5>"]]
    text = latex.table(["arm_x", "50 % & up"], body, "Caption with 5 % & _", "t", ["note_1: 95 %"])
    check_latex(text)
    assert r"\toprule" in text and r"\bottomrule" in text and text.count(r"\\") >= 3


def test_latex_of_a_study_compiles(written, tmp_path):
    text = written[1]["demo.tex"].read_text()
    check_latex(text)
    (tmp_path / "t.tex").write_text(DOCUMENT % text)
    engine = shutil.which("pdflatex")
    if engine:  # the structure above is checked with or without one
        done = subprocess.run(
            [engine, "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_numbers():
    assert numbers.points(-0.0004, signed=True) in ("-0.0", "+0.0", "0.0")
    assert numbers.bounded(0.5, float("-inf"), float("inf")) == "50.0"
    assert numbers.bounded(None, 0, 1) == numbers.rate(None) == numbers.number(float("nan")) == "-"
    assert numbers.rate(3.162e-4) == "3.16e-4" and numbers.rate(5e-2) == "5e-2"


DOCUMENTED = Document(
    "my_study",
    [
        Part("Results", ["Per cent."], [Table(["arm", "score"], [["lora (1)", "5 %"]], "words", ["(1) rank: 8"])]),
        Part("", tables=[Table(["a|b", "c"], [["<x>", "y"]])]),
        Part("Figures", pictures=[Picture("What it shows", b"<svg/>")]),
    ],
    "Does it matter?",
)


def test_every_format_renders_the_whole_document():
    md, tex, page = (form.render(DOCUMENTED) for form in (markdown, latex, html))
    for words in ("Results", "Per cent.", "words", "lora (1)", "my_study"):
        assert words in md and words in page and words.replace("_", r"\_") in tex.replace("% my_study", r"my\_study")
    assert "Does it matter?" in md and "Does it matter?" in page
    check_latex(tex)


def test_formats_differ_where_they_must():
    """Pictures need a page; footnotes follow tables that float; every format escapes what is special to it."""
    md, tex, page = (form.render(DOCUMENTED) for form in (markdown, latex, html))
    assert "Figures" not in md and "Figures" not in tex and "What it shows" in page
    assert "data:image/svg+xml;base64,PHN2Zy8+" in page
    assert "(1) rank: 8" in tex and "rank: 8" not in md
    assert "&lt;x&gt;" in page and "$<$x$>$" in tex and "a$|$b" in tex
    assert r"5 \%" in tex and "5 %" in md


def test_a_part_without_a_title_has_no_heading():
    untitled = Document("n", [Part("", ["One."])])
    assert markdown.render(untitled) == "# n\n\n- One.\n"
    assert "<h2>" not in html.render(untitled) and "\\begin" not in latex.render(untitled)
