"""SNIPS slots: 39 types of spans in what is said to a voice assistant, as the authors publish them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax.errors import UserError
from lorax.tasks.base import Task
from lorax.tasks.intents import authors_files, authors_json, is_latin1
from lorax.tasks.labelled.tagged import Tagging, TokenClassification, of_spans, tagging_task
from lorax.tasks.readers import Rows
from lorax.tasks.registry import register


@register("snips_slots")
@dataclass(frozen=True, kw_only=True)
class SnipsSlots(TokenClassification):
    """Slots of the seven intents (Coucke et al., arXiv:1805.10190), CC0; the `validate_*` files are the test set."""

    name: str = "snips_slots"

    def load(self, data_seed: int) -> Task:
        """Read the authors' files, or rows as `token_classification` does where the folder holds none of them."""
        folder = Path(self.path or "").expanduser()
        if not folder.is_dir() or not [*folder.glob("train_*_full.json"), *folder.glob("*/train_*_full.json")]:
            return super().load(data_seed)
        tagged: dict[str, list[Tagging]] = {"train": [], "test": []}
        said = Rows()
        for part, pattern in (("train", "train_*_full.json"), ("test", "validate_*.json")):
            for file in authors_files(folder, pattern):
                if is_latin1(file):
                    said.remarks.append(f"{file.name} is in Latin-1")
                for intent, queries in authors_json(file).items():
                    for number, query in enumerate(queries, start=1):
                        tagged[part].append(_tagged(query["data"], f"{file}, {intent} {number}"))
        return tagging_task(self, tagged, data_seed, {"train": said})


def _tagged(pieces: Iterable[Any], where: str) -> Tagging:
    """Return words and tags of a query, which is pieces of text, some of them a slot."""
    text, spans = "", []
    for piece in pieces:
        if not isinstance(piece, dict) or not isinstance(piece.get("text"), str):
            raise UserError(f"{where}: a piece without text")
        if "entity" in piece and piece["text"].strip():
            spans.append((len(text), len(text) + len(piece["text"]), str(piece["entity"])))
        text += piece["text"]
    return of_spans(text, spans, where)
