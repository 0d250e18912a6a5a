"""The model card: what was trained on what, how, how well it does, and the command that does it again."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.records.fields import method
from lorax.reports.text import markdown
from lorax.reports.text.cells import to_markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

    from lorax.models.registry import Loaded
    from lorax.push.folder import Written
    from lorax.push.saved import SavedRun
    from lorax.records import RunRecord

PIPELINES = {"causal": "text-generation", "classification": "text-classification", "seq2seq": "text2text-generation"}
_HERE = ("results_dir=", "save=", "device=", "track=", "cache=")
"""Words of a command that say where it ran, not what it computes."""


def model_card(saved: SavedRun, loaded: Loaded, written: Written, repo: str) -> ModelCard:
    """Return the card of a run's adapter.

    Args:
        saved: the run.
        loaded: its base.
        written: the adapter as it lies in the folder.
        repo: what `PeftModel.from_pretrained` is to be given.
    """
    from huggingface_hub import ModelCard, ModelCardData

    record = saved.record
    data = ModelCardData(
        base_model=loaded.origin.get("hub"),
        base_model_relation="adapter" if "hub" in loaded.origin else None,
        library_name="peft",
        pipeline_tag=PIPELINES.get(loaded.kind),
        tags=["lora", "lorax-bench", method(record)],
        datasets=[record.task["hub"]] if "hub" in record.task else None,
        model_name=f"{method(record)}-{record.run_id}",
        eval_results=_results(record, loaded),
        ignore_metadata_errors=False,
    )
    parts = [
        _what(record, loaded),
        _use(loaded, repo),
        _training(record, loaded, written),
        _scores(saved),
        _again(record),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _what(record: RunRecord, loaded: Loaded) -> str:
    return (
        f"# {to_markdown(method(record), cell=False)} on {_base_name(record, loaded)}, "
        f"{to_markdown(str(record.task.get('name')), cell=False)}\n\n"
        f"A low-rank adapter, trained by lorax-bench and written in PEFT's format. Run `{record.run_id}`, seed "
        f"{record.config.get('seed')}."
    )


def _base_name(record: RunRecord, loaded: Loaded) -> str:
    named = record.config["model"].get("path") or record.model.get("name")
    return loaded.origin.get("hub") or to_markdown(Path(str(named)).name, cell=False)


def _use(loaded: Loaded, repo: str) -> str:
    """Return how to load base and adapter."""
    kind = type(loaded.model)
    base = repr(loaded.origin.get("hub", "<folder of the base model>"))
    revision = f", revision={loaded.origin['commit']!r}" if "commit" in loaded.origin else ""
    classes = f", num_labels={loaded.model.config.num_labels}" if loaded.kind == "classification" else ""
    module = "transformers" if kind.__module__.startswith("transformers.") else kind.__module__
    lines = [
        "from peft import PeftModel",
        f"from {module} import {kind.__name__}",
        "from transformers import AutoTokenizer",
        "",
        f"base = {kind.__name__}.from_pretrained({base}{revision}{classes})",
        f"model = PeftModel.from_pretrained(base, {repo!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({repo!r})",
    ]
    note = ""
    if "package" in loaded.origin:
        note = (
            f"\n\nTrained on the weights of the package {loaded.origin['package']}; on those of the hub it computes "
            "something else where they differ."
        )
    if loaded.kind == "classification":
        labels = loaded.model.config.id2label
        named = ", ".join(f"{index} {labels[index]}" for index in list(labels)[:200])
        note += f"\n\nClasses: {to_markdown(named, cell=False)}."
    return "## Use\n\n```python\n" + "\n".join(lines) + f"\n```{note}"


def _training(record: RunRecord, loaded: Loaded, written: Written) -> str:
    """Return what was trained, and how, as a table."""
    from lorax.initializers.registry import names
    from lorax.running.methods import equation_and_source

    config, task, init = record.config, record.task, record.identity.get("init", {})
    equation, source = equation_and_source(method(record)) if method(record) in names() else ("", "")
    own = {
        key: value for key, value in init.items() if key not in ("name", "version", "rank", "alpha", "scaling", "eta")
    }
    origin = loaded.origin
    data = f"{task.get('hub') or task.get('name')}" + (f" at {task['commit']}" if "commit" in task else "")
    sizes = ", ".join(
        f"{task[f'n_{part}']:,} {part}" for part in ("train", "validation", "test") if task.get(f"n_{part}")
    )
    targets = config.get("targets")
    facts = {
        "base model": _base_name(record, loaded) + (f" at {origin['commit']}" if "commit" in origin else ""),
        "digest of its weights": record.model.get("digest"),
        "data": f"{data}: {sizes}" if sizes else data,
        "how it was read": task.get("data"),
        "digest of the data": task.get("digest"),
        "method": method(record),
        "equation": equation,
        "source": f"https://arxiv.org/abs/{source.removeprefix('arXiv:')}" if source.startswith("arXiv:") else source,
        "options": ", ".join(f"{key}={value}" for key, value in own.items()),
        "rank": init.get("rank"),
        "alpha": init.get("alpha"),
        "scaling": init.get("scaling"),
        "targets": ", ".join(targets) if isinstance(targets, list) else targets,
        "trained parameters": f"{record.costs['trainable']:,}" if record.costs.get("trainable") else None,
        "learning rate": config.get("lr"),
        "steps": config.get("steps"),
        "batch size": config.get("batch_size"),
        "precision": record.model.get("dtype"),
        "rank in PEFT's format": f"{written.rank}" + (f", relative error {written.error:.2g}" if written.error else ""),
    }  # fmt: skip
    rows = [[key, str(value)] for key, value in facts.items() if value not in (None, "", [])]
    return "## Training\n\n" + markdown.table(["", ""], rows, left=2)


def _scores(saved: SavedRun) -> str:
    """Return the run's scores, and its row in a study's table."""
    record = saved.record
    rows = []
    for split, entry in record.scores.items():
        if entry is not None and entry.get("score") is not None:
            loss = entry.get("loss")
            rows.append(
                [split, f"{entry['score']:.4g}", "-" if loss is None else f"{loss:.4g}", str(entry.get("n", "-"))]
            )
    text = "" if not rows else "## Scores\n\n" + markdown.table(
        ["split", str(record.task.get("metric", "score")), "loss", "items"], rows
    )  # fmt: skip
    return f"{text}\n\n{row}" if (row := _row(saved)) else text


def _row(saved: SavedRun) -> str:
    """Return the row of a study's table that this run belongs to, under that of the reference; "" outside a study."""
    from lorax.studies.registration import frozen, frozen_path

    record, store = saved.record, saved.store
    if not frozen_path(store.root, record.name).is_file():
        return ""
    from lorax.reports import columns
    from lorax.reports.main_table import score_columns, study_rows
    from lorax.studies.study import read_study

    study = read_study(frozen(store.root, record.name), store)
    spec = study.spec
    rows = [row for row in study_rows(study) if row.task == record.task.get("name")]
    mine = next((row for row in rows if row.arm == record.label), None)
    if mine is None:
        return ""
    shown = [row for row in rows if row.is_reference or row is mine]
    kept = columns.table(score_columns(spec.claim, spec.until_decided is not None, spec.alpha), shown)
    ids = [run.run_id for run in mine.records]
    belongs = (
        f"one of its {len(ids)} runs" if record.run_id in ids else "a run of that arm, but none of those it is made of"
    )
    return (
        f"Its row in the study {to_markdown(spec.name, cell=False)} (per cent; this run is {belongs}):\n\n"
        + markdown.table(kept.head, kept.body)
    )


def _again(record: RunRecord) -> str:
    """Return the command line, the commit and the versions."""
    made = record.provenance
    versions = {key: value for key, value in (made.get("versions") or {}).items() if value}
    if find_spec("peft") is not None:
        versions["peft (of this folder)"] = version("peft")
    text = "## Again\n\n"
    if words := made.get("overrides"):
        module = "lorax.mix" if "mix" in record.init_report else "lorax.run"
        text += "```bash\n" + shlex.join(["python", "-m", module, *filter(None, map(_public, words))]) + "\n```\n\n"
    commit = f"Commit {made['commit']}{' with changes' if made.get('dirty') else ''}; " if made.get("commit") else ""
    return text + f"{commit}{', '.join(f'{key} {value}' for key, value in versions.items())}."


def _public(word: str) -> str:
    """Return a word without what concerns the machine alone; of the path of a file or folder the last part."""
    key, equals, value = word.partition("=")
    if word.startswith(_HERE):
        return ""
    path = value if equals else word
    if path.startswith(("/", "~", "..")):
        return f"{key}{equals}{Path(path).name}" if equals else Path(path).name
    return word


def _results(record: RunRecord, loaded: Loaded) -> list[EvalResult]:
    """Return the scores as the hub's metadata has them."""
    from huggingface_hub import EvalResult

    task: dict[str, Any] = record.task
    return [
        EvalResult(
            task_type=PIPELINES.get(loaded.kind, loaded.kind),
            dataset_type=str(task.get("hub") or task.get("name")),
            dataset_name=str(task.get("name")),
            dataset_split=split,
            dataset_revision=task.get("commit"),
            metric_type=str(task.get("metric", "score")),
            metric_value=round(float(entry["score"]), 6),
        )
        for split, entry in record.scores.items()
        if entry is not None and entry.get("score") is not None
    ]
