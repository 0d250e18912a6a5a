"""The toy study from the command line: every round, every output, and nothing left to do the second time."""

from pathlib import Path

import pytest

from lorax.records import Store
from lorax.records.chain import read_chain
from lorax.running.device import processor
from lorax.studies.registration import frozen
from lorax.studies.study import read_study
from lorax.tables import main as tables

STUDY = ["study=toy", "hydra/launcher=packed", "track=none"]
QUICK = [
    "study.seeds=[0,1]",
    "study.fixed.steps=6",
    "study.fixed.batch_size=4",
    "task.n_validation=24",
    "task.n_test=24",
]


@pytest.mark.parametrize(
    "words", [QUICK, pytest.param(["study.estimand=rate"], marks=pytest.mark.slow)], ids=["method", "rate"]
)
def test_the_toy_study_goes_through_every_round_to_every_output(lorax, capsys, words):
    assert lorax(*STUDY, *words, small=False) == 0
    printed = capsys.readouterr().out
    for stage in ("cost", "tune", "extend", "final"):
        assert f"toy: {stage}, " in printed
    store = Store("results")
    study = read_study(frozen(store.root, "toy"), store)
    assert study.complete and not study.stale and not study.unasked
    windows = {arm: len(rates) for (_, arm), rates in study.windows.items()}
    if words is QUICK:
        assert set(windows) == {"lora", "pissa", "lora_xs equal"} and min(windows.values()) >= 3
        assert study.result.estimand == "method" and f"toy: final, {2 * 3 * 3 + 1} runs" in printed
    else:
        assert not windows and study.result.estimand == "rate"
    assert len({choice.trials for (_, arm), choice in study.choices.items() if study.spec.arm(arm).trained}) == 1
    for kind in ("md", "csv", "tex", "html"):
        assert Path(f"results/tables/toy.{kind}").stat().st_size > 500
    figures = {path.stem for path in Path("results/figures/toy").glob("*.png")}
    assert figures >= {"learning_rate", "winner_flip", "selection", "training", "pareto", "agreement"}
    assert {path.stem for path in Path("results/figures/toy").glob("*.svg")} == figures
    text = Path("results/tables/toy.md").read_text()
    assert "Minimum detectable effect" in text and "Threats to validity" in text
    foot = text.partition("## Audit\n")[2].strip().splitlines()
    assert [line for line in foot if "warning: commits: " not in line] == foot[-1:]  # the checkout may be edited
    assert "it holds together" in foot[-1]
    lines = read_chain(Path("results/studies/toy.chain.jsonl"))
    assert {line.facts["run"] for line in lines[1:]} == {record.run_id for record in store.read("toy")}
    assert all(line.fits for line in lines) and lines[0].facts["machine"]["processor"] == processor()
    made = [(record.provenance["processor"], record.provenance["threads"]) for record in store.read("toy")]
    assert {name for name, _ in made} == {processor()} and all(threads >= 1 for _, threads in made)
    assert all(record.model["attention"] for record in store.read("toy"))
    assert {record.provenance["chain"] for record in store.read("toy")} <= {line.digest for line in lines}
    assert {split for record in store.read("toy") for split in record.task["asked"]} == {"validation", "test"}
    assert ("each method at its best learning rate" if words is QUICK else "at the selected rates") in text
    assert lorax(*STUDY, *words, small=False) == 0
    assert "runs\n" not in capsys.readouterr().out.partition("Minimum detectable")[2].partition("# toy")[0]
    assert lorax("model=toy", "task=toy", "name=toy", "steps=2", "base=false", "track=none", small=False) == 0
    assert "Minimum detectable effect" in Path("results/tables/toy.md").read_text(), "a run of its name spoils no study"
    (stray,) = [record for record in store.read("toy") if not record.config.get("tag")]
    store.folder("toy").joinpath(f"{stray.run_id}.json").unlink()
    assert tables(["toy"]) == 0
    body, _, audited = Path("results/tables/toy.md").read_text().partition("## Audit\n")
    assert body == text.partition("## Audit\n")[0]
    assert f"run {stray.run_id} (seed 0" in audited and "has no record" in audited, "the chain remembers it"


@pytest.mark.slow
def test_a_study_is_registered_first_and_run_then(lorax, capsys):
    words, chain = [*STUDY, *QUICK, "study.costs=false"], Path("results/studies/toy.chain.jsonl")
    for word, line in (
        ("study.register=maybe", "must be true or false"),
        ("study.anchor=main", "study.anchor=main: the"),
    ):
        assert lorax(*words, word, small=False) == 2
        assert line in capsys.readouterr().err and not chain.exists()
    assert lorax(*words, "study.register=true", small=False) == 0
    assert f"registered: commit results/studies/toy.json and {chain}" in capsys.readouterr().out
    assert lorax(*words, "study.register=true", "study.anchor=0123abc", small=False) == 0
    assert [line.kind for line in read_chain(chain)] == ["design", "anchor"] and not Path("results/records").exists()
    assert lorax(*words, "study.register=true", "study.margin=0.5", small=False) == 2
    assert "margin was fixed as" in capsys.readouterr().err


@pytest.mark.slow
def test_the_toy_study_until_decided_in_packs(lorax, capsys):
    """`study.seeds` on the command line; killed by losing records, it goes on to the same table."""
    few = ["study.costs=false", "study.tuning.rounds=0", "~study.blocks", "study.arms=[lora,pissa]"]
    words = [*STUDY, *QUICK[1:], *few, "study.seeds={until_decided: {max: 5}}"]
    assert lorax(*words, "study.plan=true", small=False) == 0
    assert "an upper bound" in capsys.readouterr().out and not Path("results/records/toy").exists()
    assert lorax(*words, small=False) == 0
    printed = capsys.readouterr().out
    assert "toy: final, 18 runs" in printed and "of 1 comparisons decided after 4 seeds" in printed
    store = Store("results")
    study = read_study(frozen(store.root, "toy"), store)
    assert study.complete and not study.unasked and study.spec.until_decided.max == 5
    assert all(row.letters == "" for row in study.result.arms) and Path("results/figures/toy/seeds.svg").is_file()
    text = Path("results/tables/toy.md").read_text().partition("## Audit\n")[0]
    lost = [record for record in store.read("toy") if record.config["seed"] == 3 and "test" in record.scores]
    assert len(lost) == 6
    for record in lost[:3]:
        store.folder("toy").joinpath(f"{record.run_id}.json").unlink()
    assert lorax(*words, small=False) == 0
    assert Path("results/tables/toy.md").read_text().partition("## Audit\n")[0] == text
    assert lorax(*STUDY, *QUICK[1:], *few, "study.seeds=until_decided", small=False) == 2
    assert "seeds was fixed as" in capsys.readouterr().err
