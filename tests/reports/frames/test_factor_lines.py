"""Lines over alpha, zeta and gamma: which arms form one, their tables and figures."""

from lorax.records import RunRecord
from lorax.reports.figures.factor_maps import factor_map
from lorax.reports.frames.factor_lines import factor_lines
from lorax.reports.study import factor_tables


def run(name, rank, seed=0, score=0.5, **knobs):
    init = {"name": name, "version": 1, "rank": rank, "scaling": "standard", "eta": 16 / rank, **knobs}
    return RunRecord(
        run_id=f"{init}{seed}{score}", name="map", status="finished", identity={"init": init, "seed": seed},
        config={"seed": seed},
        scores={"test": {"score": score, "n": 10}}, diagnostics={"cosine_first": rank / 100},
    )  # fmt: skip


RUNS = [
    *(run("lora", rank, seed, alpha / 100, alpha=alpha) for rank in (2, 8) for alpha in (8, 16) for seed in (0, 1)),
    *(run("lora_ga", 8, alpha=16, zeta=zeta) for zeta in (4, 16)),
    *(run("lora_ga", 8, alpha=alpha, zeta=16) for alpha in (8, 32)),
    *(run("lora_ga", 8, alpha=alpha, gamma=16) for alpha in (8, 32)),
    run("pissa", 8, alpha=16),
    RunRecord(run_id="f", name="map", status="finished", config={}, identity={"init": {"name": "full"}}),
]


def test_a_line_is_what_differs_in_one_factor_alone():
    lines = factor_lines(RUNS, "score")
    values = {(line.method, line.factor, line.rank, line.fixed): list(line.runs["value"]) for line in lines}
    assert values == {
        ("lora", "alpha", 2, ""): [8, 8, 16, 16],
        ("lora", "alpha", 8, ""): [8, 8, 16, 16],
        ("lora_ga", "alpha", 8, "zeta=16"): [16, 8, 32],
        ("lora_ga", "alpha", 8, "gamma=16"): [8, 32],
        ("lora_ga", "zeta", 8, ""): [4, 16],
    }


def test_runs_that_differ_in_more_than_the_factor_are_not_one_line():
    """Another rate, other targets: their own line, or none. A run that stands for two arms counts once."""
    runs = [run("lora", 8, seed, alpha=alpha, score=alpha / 100) for alpha in (8, 16) for seed in (0, 1)]
    other = [run("lora", 8, seed, alpha=16, score=0.9) for seed in (0, 1)]
    for field in ({"lr": 1e-2}, {"targets": ["q_proj"]}):
        for one in runs:
            one.identity |= {"lr": 1e-3, "targets": "all-linear"}
        for place, one in enumerate(other):
            one.identity |= {"lr": 1e-3, "targets": "all-linear"} | field
            one.run_id = f"other {place}"
        (line,) = factor_lines([*runs, *runs, *other], "score")
        assert sorted(line.runs["score"]) == [0.08, 0.08, 0.16, 0.16]


def test_arms_on_other_data_are_their_own_line_and_say_so():
    runs = [run("lora", 8, alpha=alpha, score=n / 1000 + alpha) for alpha in (8, 16) for n in (100, 500)]
    for one, n in zip(runs, (100, 500, 100, 500), strict=True):
        one.identity["task"] = {"name": "t", "digest": f"d{n}"}
        one.config["task"] = {"name": "t", "n_train": n}
    lines = factor_lines(runs, "score")
    assert [line.fixed for line in lines] == ["task.n_train=100", "task.n_train=500"]
    assert all(list(line.runs["value"]) == [8, 16] for line in lines)


def test_a_rate_that_follows_the_factor_does_not_break_the_line():
    runs = [run("lora", 8, seed, alpha=alpha) for alpha in (8, 16) for seed in (0, 1)]
    for one in runs:
        one.identity["lr"] = 0.1 / one.identity["init"]["alpha"]
    assert len(factor_lines(runs, "score")) == 1


def test_tables_hold_means_and_spread_and_figures_every_curve():
    lines = {"one": factor_lines(RUNS, "score")}
    tables = {table.title: table for table in factor_tables(lines)}
    assert list(tables["one: lora"].head) == ["alpha", "8", "16"]
    assert tables["one: lora"].body[0] == ["r=2", "8.0 ± 0.0 (2)", "16.0 ± 0.0 (2)"]
    for quantity in ("score", "cosine"):
        figure = factor_map(lines, quantity)
        names = [text.get_text() for panel in figure.axes for text in panel.get_legend().get_texts()]
        assert sorted(names) == ["r=2", "r=8", "r=8", "r=8, gamma=16", "r=8, zeta=16"]
    assert factor_map({"one": []}, "score") is None


def test_panels_of_a_task_share_an_axis_that_holds_every_run():
    runs = [run("lora", 2, alpha=alpha, score=0.5) for alpha in (8, 16)]
    runs += [run("pissa", 64, alpha=alpha, score=score) for alpha in (8, 16) for score in (0.1, 0.9)]
    lines = {"one": factor_lines(runs, "score")}
    for quantity, low, high in (("score", 0.1, 0.9), ("cosine", 0, 0.64)):
        limits = {panel.get_ylim() for panel in factor_map(lines, quantity).axes}
        ((bottom, top),) = limits
        assert bottom <= low and top > high
