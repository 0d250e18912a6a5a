"""The notebooks run from top to bottom, say what the records say, and are committed without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from made_study import ARMS, run_study
from nbclient import NotebookClient

from lorax.records import Store
from lorax.reports.text import numbers
from lorax.studies.registration import frozen
from lorax.studies.study import read_study

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
STUDIES = sorted(path.stem for path in (ROOT / "results" / "studies").glob("*.json"))


def execute(name, timeout=600):
    """Run a notebook of this checkout; return what it shows: all Markdown in one text, and the number of figures."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    streams = [output.text for output in outputs if output.output_type == "stream"]
    assert not streams, f"{name} prints: {streams[0][:200]}"
    shown = [output.get("data", {}) for output in outputs]
    return "\n".join(data.get("text/markdown", "") for data in shown), sum("image/png" in data for data in shown)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished study of two tasks with made-up records, some of them diverged."""
    store = Store(tmp_path_factory.mktemp("made"))
    run_study(store, ARMS, tasks=("words", "sums"), made={"diverge_above": 30})
    return store


@pytest.mark.slow
def test_a_study_is_read_and_its_verdicts_said(made, monkeypatch):
    monkeypatch.setenv("LORAX_NOTEBOOK_STUDY", "demo")
    monkeypatch.setenv("LORAX_NOTEBOOK_RESULTS", str(made.root))
    text, figures = execute("read_a_study")
    assert figures == 6
    study = read_study(frozen(made.root, "demo"), made)
    verdicts = {}
    for c in study.result.comparisons:
        if c.task == "words":
            verdicts.setdefault(c.verdict, []).append(c.arm)
            assert f"{numbers.points(c.low, True)}, {numbers.points(c.high, True)}" in text
    assert len(verdicts) > 1
    for verdict, arms in verdicts.items():
        line = re.search(rf"^- \*\*{verdict}\*\*: (.*)$", text, re.MULTILINE).group(1)
        assert re.findall(r"`(.+?)`", line) == arms
    assert f"K = {study.spec.family} comparisons" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_committed_study_can_be_read(name, monkeypatch):
    monkeypatch.setenv("LORAX_NOTEBOOK_STUDY", name)
    monkeypatch.delenv("LORAX_NOTEBOOK_RESULTS", raising=False)
    text, _ = execute("read_a_study")
    assert "Reservations" in text


@pytest.mark.slow
def test_initialisers_do_to_real_weights_what_they_promise():
    text, figures = execute("what_initialisers_do")
    assert figures == 5
    exact, cases = re.search(r"(\d+) of (\d+) cases leave every logit unchanged", text).groups()
    assert exact == cases
    sentence = re.search(r"the negative gradient: (.*?)\. The bound is (\S+)", text)
    cosines = {method: float(value) for method, value in (part.rsplit(" ", 1) for part in sentence[1].split(", "))}
    assert max(cosines, key=cosines.get) == "lora_ga" and cosines["lora_ga"] == float(sentence[2])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs_and_without_typed_results(path):
    code, text = cells(path, "code"), cells(path, "markdown")
    assert code and text
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in text:
        assert not re.search(r"\d+(\.\d+)?\s*%|\d\.\d", cell.source), "results are computed in code cells, not typed"
    for cell in code:
        compile(cell.source.replace("%matplotlib inline", ""), path.name, "exec")
