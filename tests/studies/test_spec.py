"""Reading a study: every committed one, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorax.errors import UserError
from lorax.studies.parse import from_mapping, from_yaml

GOOD = {"name": "s", "model": "toy", "tasks": "t", "arms": ["lora", "pissa"], "reference": "lora", "margin": 0.01}
CONF = Path(__file__).parents[2] / "conf" / "study"


@pytest.mark.parametrize(
    "changes,line",
    [
        ({"margin": None}, "margin is required"),
        ({"margin": 2}, "fraction between 0 and 1"),
        ({"margni": 0.1}, "did you mean 'margin'"),
        ({"reference": "lroa"}, "did you mean 'lora'"),
        ({"arms": ["lora", "lora"]}, "label 'lora' occurs twice"),
        ({"tuning": {"points": 5}}, "at least 6 learning rates"),
        ({"tuning": {"seeds": [101]}}, "at least 2 tuning seeds"),
        ({"tuning": {"seeds": [0, 101]}}, "0 is a final seed too"),
        ({"tuning": {"halving": {"steps": 9}}}, "must be below fixed.steps"),
        ({"seeds": [1, 1]}, "occurs twice"),
        ({"seeds": "x"}, "whole numbers"),
        ({"blocks": {"b": ["pisa"]}}, "did you mean 'pissa'"),
        ({"alpha": "x"}, "a number is needed"),
        ({"procedure": "crosed"}, "did you mean 'crossed'"),
        ({"estimand": "methd"}, "study.estimand=methd: did you mean 'method'"),
        ({"estimand": "method", "tuning": False}, "estimand=method: rates are searched, so tuning is needed"),
        ({"estimand": "method", "tuning": {"runners_up": 1}}, "runners_up=1: for estimand: rate"),
        ({"estimand": ["rate"]}, "study.estimand=.*a text is needed"),
        ({"costs": {"seed": 0}}, "choose another"),
        ({"arms": [{"rank": 4}]}, "an arm needs init"),
        ({"fixed": {"lr": 1e-3}}, "fixed.lr: rates are tuned"),
        ({"per_task": {"t": {"seed": 7}}}, "per_task.t.seed: a study lists its seeds"),
        ({"arms": ["lora", {"init": "pissa", "model": "minilm"}]}, "arms.*model: a study names its model"),
        (
            {
                "arms": [
                    "lora",
                    {"label": "a", "init": "svft", "match": {"to": "lora", "key": "init.width"}},
                    {"label": "b", "init": "lora_xs", "match": {"to": "a", "key": "rank"}},
                ]
            },
            "arms.b.match.to=a: that arm is matched itself",
        ),
    ],
)
def test_bad_studies_are_refused_in_one_line(changes, line):
    with pytest.raises(UserError, match=line) as caught:
        from_mapping(GOOD | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_reads_and_carries_its_name(path):
    spec = from_yaml(path)
    assert spec.name == path.stem and spec.question and f"+study={path.stem}" in path.read_text()
    assert not spec.blocks or {label for block in spec.blocks.values() for label in block} == set(spec.labels)
