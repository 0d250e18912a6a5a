"""Ranks as frames, tables and figures: one training cut to several ranks, and what each layer has in the end."""

from __future__ import annotations

from lorax.records import RunRecord
from lorax.records.fields import layer_ranks, live, lower_ranks
from lorax.reports.columns import LIVE, TRAINED, frame, table
from lorax.reports.figures.ranks import rank_by_layer, score_by_rank
from lorax.reports.frames.ranks import by_rank, ranks_of_layers
from lorax.reports.ranks import part
from lorax.reports.sweep import read_sweep


def run(method, rank, seed=0, test=0.5, lower=None, rule=None, task="words", layers=None, trainable=700):
    init = {"name": method, "rank": rank, "alpha": 16.0}
    scores = {"test": {"score": test, "loss": 1 - test, "n": 10}}
    scores |= {f"test@{b}": {"score": value, "loss": 1 - value, "n": 10} for b, value in (lower or {}).items()}
    report = {"rule": rule} if rule else {}
    return RunRecord(
        f"{method}{rank}{seed}{task}", "made", "finished", {"init": {"name": method}, "rank": rank, "seed": seed},
        {"init": init, "lr": 1e-3, "seed": seed}, task={"name": task}, scores=scores,
        init_report=report | {"layers": layers or {}}, costs={"trainable": trainable, "head": 30},
    )  # fmt: skip


MIXED = [
    run("dylora", 8, test=0.8, lower={2: 0.6, 4: 0.7}),
    run("dylora", 8, seed=1, test=0.9, lower={2: 0.5, 4: 0.7}),
    run("lora", 2, test=0.65), run("lora", 8, test=0.85), run("lora", 16, test=0.9), run("svft", None, test=0.4),
]  # fmt: skip


def test_one_training_stands_at_each_rank_beside_those_trained_there():
    found = by_rank(MIXED)
    assert list(dict.fromkeys(found["row"])) == ["dylora, trained once at rank 8", "lora"]
    once = found[found["once"]]
    assert {(line.rank, line.seed): line.score for line in once.itertuples()} == {
        (2, 0): 0.6, (4, 0): 0.7, (8, 0): 0.8, (2, 1): 0.5, (4, 1): 0.7, (8, 1): 0.9,
    }  # fmt: skip
    assert sorted(found.loc[~found["once"], "rank"]) == [2, 8], "no dylora was scored at 16"
    (words,) = part(found).tables
    assert words.head == ["words", "trainings", "rank 2", "rank 4", "rank 8"]
    assert words.body == [
        ["dylora, trained once at rank 8", "1", "55.0 ± 7.1 (2)", "70.0 ± 0.0 (2)", "85.0 ± 7.1 (2)"],
        ["lora", "2", "65.0 (1)", "-", "85.0 (1)"],
    ]


def test_a_sweep_without_such_runs_has_no_part_and_no_figure():
    found = by_rank([record for record in MIXED if "lora" == record.config["init"]["name"]])
    assert found.empty and part(found) is None and score_by_rank(found) is None
    assert by_rank([]).empty and rank_by_layer(ranks_of_layers({})) is None


def test_splits_and_tasks_keep_apart():
    both = [run("dylora", 4, lower={1: 0.2}), run("dylora", 4, lower={2: 0.3}, task="sums")]
    found = by_rank(both)
    assert sorted(zip(found["task"], found["rank"], strict=True)) == [
        ("sums", 2), ("sums", 4), ("words", 1), ("words", 4)]  # fmt: skip
    assert by_rank(both, "validation").empty and lower_ranks(both[0], "validation") == {}
    assert len(score_by_rank(found).axes) == 2


def test_the_curve_of_one_training_is_dashed_and_its_points_are_the_means():
    axes = score_by_rank(by_rank(MIXED)).axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() != "None" and len(line.get_xdata()) > 1]
    once, lora = lines[:2]
    assert once.get_linestyle() == "--" and lora.get_linestyle() == "-"
    assert list(once.get_xdata()) == [2, 4, 8] and [round(y, 3) for y in once.get_ydata()] == [0.55, 0.7, 0.85]


def pruned(seed, **ranks):
    named = {f"model.layers.{name[1]}.{name[3:]}": rank for name, rank in ranks.items()}
    return run("adalora", 2, seed=seed, rule={"ranks": named, "live": 100 * sum(named.values())})


LAYERS = {"adalora": [pruned(0, b0_q=3, b1_q=1, b1_up=0), pruned(1, b0_q=2, b1_q=1, b1_up=2)]}


def test_the_rank_of_a_layer_is_the_mean_over_runs_by_module_and_block():
    found = ranks_of_layers(LAYERS)
    assert {(line.module, line.block): line.rank for line in found.itertuples()} == {
        ("q", 0): 2.5, ("q", 1): 1.0, ("up", 1): 1.0}  # fmt: skip
    image = rank_by_layer(found).axes[0].images[0]
    assert image.get_array().tolist() == [[2.5, 1.0], [None, 1.0]]  # block 0 has no module `up`
    assert image.get_clim() == (0, 2.5)


def test_ranks_that_the_start_has_set_are_read_from_the_layers():
    assert layer_ranks(run("eva", 4, layers={"layers.0.q": {"rank": 6.0, "captured": 0.9}})) == {"layers.0.q": 6}
    assert layer_ranks(run("lora", 4, layers={"layers.0.q": {"captured": 0.9}})) == {}


def test_the_live_count_is_a_column_where_a_row_has_one():
    record = LAYERS["adalora"][0]
    assert live(record) == 430 and live(MIXED[0]) is None  # 4 triplets of 100 values, and the head
    sweep = read_sweep([*LAYERS["adalora"], run("lora", 2, trainable=600)])
    assert list(sweep.frame()["live"].fillna("")) == ["430 .. 530", ""]
    (shown, *_) = sweep.document("made").parts[0].tables
    assert shown.head.index("live") == shown.head.index("trained") + 1
    plain = read_sweep(MIXED)
    assert "live" not in plain.frame() and "live" not in plain.document("made").parts[0].tables[0].head


def test_a_column_that_is_optional_looks_at_all_rows():
    rows = [type("R", (), {"records": [record]})() for record in (MIXED[0], LAYERS["adalora"][0])]
    assert list(frame([TRAINED, LIVE], iter(rows))["live"].fillna(0)) == [0, 430]
    assert table([TRAINED, LIVE], iter(rows[:1])).head == ["trained"]
