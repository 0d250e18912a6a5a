"""The toy study from the command line: every round, every output, and nothing left to do the second time."""

import subprocess
import sys
from pathlib import Path

from lorax.records import Store
from lorax.studies.registration import frozen
from lorax.studies.study import read_study


def test_the_toy_study_goes_through_every_round_to_every_output(lorax, capsys):
    assert lorax("study=toy", "hydra/launcher=packed", "track=none", small=False) == 0
    printed = capsys.readouterr().out
    for stage in ("cost", "tune", "extend", "final"):
        assert f"toy: {stage}, " in printed
    store = Store("results")
    study = read_study(frozen(store.root, "toy"), store)
    assert study.complete and not study.stale and not study.unasked
    assert len({choice.trials for (_, arm), choice in study.choices.items() if study.spec.arm(arm).trained}) == 1
    for kind in ("md", "csv", "tex", "html"):
        assert Path(f"results/tables/toy.{kind}").stat().st_size > 500
    figures = {path.stem for path in Path("results/figures/toy").glob("*.png")}
    assert figures >= {"learning_rate", "winner_flip", "selection", "training", "price", "agreement"}
    assert {path.stem for path in Path("results/figures/toy").glob("*.svg")} == figures
    text = Path("results/tables/toy.md").read_text()
    assert "Minimum detectable effect" in text and "Threats to validity" in text
    assert lorax("study=toy", "hydra/launcher=packed", "track=none", small=False) == 0
    assert "runs\n" not in capsys.readouterr().out.partition("Minimum detectable")[2].partition("# toy")[0]
    assert lorax("model=toy", "task=toy", "name=toy", "steps=2", "base=false", "track=none", small=False) == 0
    assert "Minimum detectable effect" in Path("results/tables/toy.md").read_text(), "a run of its name spoils no study"
    (stray,) = [record for record in store.read("toy") if not record.config.get("tag")]
    store.folder("toy").joinpath(f"{stray.run_id}.json").unlink()
    again = subprocess.run([sys.executable, "-m", "lorax.tables", "toy"], capture_output=True, text=True)
    assert again.returncode == 0 and Path("results/tables/toy.md").read_text() == text
