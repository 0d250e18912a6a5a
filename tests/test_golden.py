"""A table of toy runs, kept: the whole pipeline gives the same numbers for every method in it.

A new method joins with a line of its name in golden/toy.csv; then, and after a change that is meant to move
numbers, `GOLDEN=write python -m pytest tests/test_golden.py` writes the table.
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
    wanted = pd.read_csv(GOLDEN)
    words = ["-m", f"init={','.join(wanted['method'])}", "rank=4", "model=toy", "task=toy", "steps=25"]
    words += ["dtype=float32", "track=none", "name=golden", "hydra/launcher=packed"]
    monkeypatch.setattr(sys, "argv", ["lorax", *words])
    main()
    table = pd.read_csv("results/tables/golden.csv")
    if os.environ.get("GOLDEN") == "write":
        table.to_csv(GOLDEN, index=False)
        wanted = table
    pd.testing.assert_frame_equal(table[EXACT], wanted[EXACT], check_exact=False, rtol=1e-6)
    assert table["toy_mean"].tolist() == pytest.approx(wanted["toy_mean"].tolist(), abs=TWO_ITEMS)
    assert table["step0_error"].max() == 0
