"""A golden toy table over all methods guards the whole pipeline.

After a change that is meant to move it: `GOLDEN=write python -m pytest tests/test_golden.py`.
"""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

GOLDEN = Path(__file__).parent / "golden" / "toy.csv"
EXACT = ["method", "rank", "eta", "lr", "parameters", "toy_n"]
TWO_ITEMS = 2 / 64  # another processor may round a near-tie the other way


def test_the_toy_table_is_the_golden_one(monkeypatch, tmp_path):
    from lorax.run import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAX_CACHE", str(tmp_path / "cache"))
    words = "-m init=none,full,lora,lora_ga,pissa,milora,lora_xs,svft rank=4 model=toy task=toy steps=25".split()
    words += ["dtype=float32", "track=none", "name=golden", "hydra/launcher=packed"]
    monkeypatch.setattr(sys, "argv", ["lorax", *words])
    main()
    found = pd.read_csv("results/tables/golden.csv")
    if os.environ.get("GOLDEN") == "write":
        found.to_csv(GOLDEN, index=False)
    wanted = pd.read_csv(GOLDEN)
    pd.testing.assert_frame_equal(found[EXACT], wanted[EXACT], check_exact=False, rtol=1e-6)
    assert found["toy_mean"].tolist() == pytest.approx(wanted["toy_mean"].tolist(), abs=TWO_ITEMS)
    assert found["step0_error"].max() == 0
