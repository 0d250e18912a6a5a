"""Datasets from the hub: which commit was read, and what the hub says when it gives none. Nothing is fetched."""

import datasets
import pyarrow
import pytest
from huggingface_hub.utils import _http, hf_raise_for_status

from lorax.diagnostics.natural_text import load_text
from lorax.errors import UserError
from lorax.tasks import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "Access to dataset org/x is restricted. You must have access to it and be authenticated to access it."


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with two states of one dataset, in a cache as `datasets` lays it out; the words it was asked."""
    asked = []

    def load_dataset(path, subset, revision):
        asked.append((path, subset, revision))
        commit, count = (COMMIT[::-1], 60) if revision == "more" else (COMMIT, 40)
        columns = {key: [f"{key} {i}" for i in range(count)] for key in ("prompt", "answer", "text")}
        table = pyarrow.table(columns | dict.fromkeys(("label", "label_text"), ["a", "b"] * (count // 2)))
        file = tmp_path / "owner___name" / "default" / "0.0.0" / commit / "name-train.arrow"
        file.parent.mkdir(parents=True, exist_ok=True)
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        return datasets.DatasetDict(train=datasets.Dataset.from_file(str(file)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("family", ["jsonl", "text_classification", "banking77"])
def test_a_revision_is_asked_for_and_its_commit_is_noted(hub, family):
    task = load({"name": family, "path": "owner/name", "revision": "v2"}, 0)
    assert hub == [("owner/name", None, "v2")] and task.notes["hub"] == {"hub": "owner/name", "commit": COMMIT}
    branch = load({"name": family, "path": "owner/name"}, 0)
    assert branch.digest == task.digest  # the data count, not their name
    other = load({"name": family, "path": "owner/name", "revision": "more"}, 0)
    assert other.digest != task.digest and other.notes["hub"]["commit"] == COMMIT[::-1]


@pytest.mark.parametrize("family", ["jsonl", "text_classification", "banking77"])
def test_what_lies_here_has_no_revisions(hub, family, tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("text,category\na,b\nc,d\n")
    with pytest.raises(UserError, match=r"task.revision=v2: task.path=.* lies here"):
        load({"name": family, "path": str(tmp_path), "revision": "v2"}, 0)
    if family != "banking77":
        with pytest.raises(UserError, match="task.revision=v2: task.train is a file"):
            load({"name": family, "train": str(tmp_path / "train.csv"), "revision": "v2"}, 0)
    stand_in = tmp_path / "data" / family
    stand_in.mkdir(parents=True)
    for part in ("train", "test"):
        rows = "".join(f"{part} {i},{'ab'[i % 2]},{part} {i},x\n" for i in range(40))
        (stand_in / f"{part}.csv").write_text(
            f"text,{'category' if family == 'banking77' else 'label'},prompt,answer\n{rows}"
        )
    monkeypatch.setenv("LORAX_DATA", str(tmp_path / "data"))  # stands in for the hub, at any revision
    assert "hub" not in load({"name": family, "path": "owner/name", "revision": "v2"}, 0).notes and not hub


def refused(status, code, message):
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    client = _http.httpx2
    request = client.Request("GET", "https://huggingface.co/api/datasets/org/x")
    hf_raise_for_status(client.Response(status, headers=headers, request=request))


@pytest.mark.parametrize(
    "error, parts",
    [
        (lambda: refused(401, "GatedRepo", GATED), ["gated", "org/x", "restricted", "authenticated"]),
        (lambda: refused(401, "RepoNotFound", ""), ["Repository Not Found", "private or gated"]),
        (lambda: refused(404, "RevisionNotFound", ""), ["Revision Not Found"]),
        (OSError("Dataset 'org/x' is a gated dataset\non the Hub.\n\nmore"), ["a gated dataset on the Hub."]),
    ],
)  # fmt: skip
def test_the_first_paragraph_is_said_whole(monkeypatch, error, parts):
    def fail(*words, **more):
        if isinstance(error, OSError):
            raise error
        error()

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for read in (lambda: load({"name": "jsonl", "path": "org/x", "revision": "v2"}, 0), lambda: load_text("org/x")):
        with pytest.raises(UserError) as caught:
            read()
        line = str(caught.value)
        assert all(part in line for part in parts) and "\n" not in line and "Error. (Request" not in line, line
