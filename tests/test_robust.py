"""What goes wrong in the long run: refusals, full disks, failing runs of a pack, stale records, interrupts."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lorax.records import RunRecord, Store, Unwritable
from lorax.records.store import write_together
from lorax.running import identity
from lorax.running.packing import make_packs
from lorax.studies.parse import from_mapping
from lorax.studies.registration import freeze

PACK = ["-m", "base=false", "rank=2", "hydra/launcher=packed"]
STUDY = [
    "study=toy", "study.fixed.steps=3", "study.fixed.batch_size=4", "study.seeds=[0,1]", "study.tuning.rounds=0",
    "~study.blocks", "study.arms=[lora,{init: none, trained: false}]", "study.estimand=rate",
    "task.n_train=64", "task.n_validation=10", "task.n_test=10", "dtype=float32", "track=none",
]  # fmt: skip


LAUNCHED = {
    "run": ["base=false"],
    "grid": ["-m", "base=false", "seed=0,1"],
    "pack": [*PACK, "seed=0,1,2"],
}
FULL = (("run", 0), ("run", 1), ("run", 40), ("grid", 1), ("pack", 1))
"""How something is launched and for how many writes there is room; the slow tier has every pair."""


def records(name="small", results="results"):
    store = Store(results)
    return {record.run_id: record for record in store.read(name)} if store.folder(name).is_dir() else {}


def outcome(by_id):
    """What must not depend on how often a run was interrupted."""
    return {key: (record.label, record.status, record.curve, record.scores) for key, record in by_id.items()}


def left_over(folder="."):
    """Temporary files and locks."""
    return [path for path in Path(folder).rglob("*") if path.name.startswith(".") or path.suffix == ".lock"]


def one_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lorax: "), lines
    return lines[0]


@pytest.mark.parametrize(
    "words, parts",
    [
        (["targets=[nosuch]"], ["'nosuch'", "q_proj"]),
        (["rank=100000"], ["rank=100000", "down_proj", "64"]),
        (["init=lora_ga", "rank=20"], ["2 x 20", "k_proj", "32"]),
        (["init=svft", "init.pattern=top_k"], ["top_k", "64x128"]),
        (["device=cuda:63"], ["cuda:63", "this machine has"]),
        (["save=/proc/x/y"], ["save=/proc/x/y"]),
        (["model=hf"], ["model.path"]),
        (["model=hf", "model.path=/nowhere/x"], ["/nowhere/x"]),
        (["task=jsonl"], ["task.path"]),
        (["seed=99999999999999999999"], ["seed=99999999999999999999"]),
        (["~rank"], ["rank"]),
        (["init=null"], ["init=null", "choose from", "lora"]),
        (["=8"], ["key=value"]),
        (["rank=2,4"], ["rank=2,4", "-m"]),
        (["label='x"], ["label='x", "quote"]),
        (["-m", "rank=2,100000"], ["rank=100000"]),
        (["-m", "device=cuda:63", "seed=0,1"], ["cuda:63"]),
        (["-m", "hydra/launcher=packed", "hydra.launcher.lanes=0"], ["hydra.launcher.lanes=0", "at least 1"]),
        (["-m", "hydra/launcher=packd"], ["packd", "'packed'"]),
        (["-m", "hydra.launcher.lane=2"], ["hydra.launcher.lane"]),
        (["experiment=nosuch"], ["nosuch", "six"]),
        (["init.patern=banded", "init=svft"], ["init.patern", "init.pattern"]),
        (["task.path=x.jsonl"], ["task.path: the chosen task has no such field; it is one of banking77"]),
        (["pth=x.jsonl"], ["pth: no such key; did you mean", "'task.path'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_refused_command_says_one_line_and_writes_nothing(lorax, capsys, words, parts):
    assert lorax(*words) == 2
    line = one_line(capsys)
    assert all(part in line for part in parts), line
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "words, parts",
    [
        (["study=nosuch"], ["nosuch", "toy"]),
        (["study=toy", "rank=2,4"], ["rank", "grid"]),
        (["study=toy", "rank=1000"], ["rank=1000", "64"]),
        (["study=toy", "init=pissa"], ["init", "arm"]),
        (["study=toy", "lr=0.3"], ["lr", "tuned"]),
        (["study=toy", "name=mine"], ["name", "study's name"]),
        (["study=toy", "device=cuda:63"], ["cuda:63"]),
        (["study=toy", "study.margn=0.1"], ["study.margn", "study.margin"]),
        (["study=toy", "+study.pionts=3"], ["pionts"]),
        (["study=toy", "study.metric=scor"], ["study.metric=scor", "score"]),
        (["study=toy", "study.arms=[lora,lora]"], ["'lora'", "twice"]),
        (["study=toy", "study.arms=3"], ["study.arms=3", "list"]),
        (["study=toy", "study.tuning.points=six"], ["points=six", "whole number"]),
        (["study=toy", "~study.blocks", "study.arms=[lora,{init: pisa}]"], ["pisa", "'pissa'"]),
        (["study=toy", "~study.blocks", "study.arms=[lora,{init: pissa, lr: 0}]"], ["lr=0"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_refused_study_says_one_line_and_fixes_no_design(lorax, capsys, words, parts):
    assert lorax(*words, small=False) == 2
    line = one_line(capsys)
    assert all(part in line for part in parts), line
    assert not list(Path().iterdir())


@pytest.mark.parametrize("place", ["/proc/nowhere", "file", "file/below"])
@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"], [*PACK, "seed=0,1"]], ids=["run", "grid", "pack"])
def test_results_that_cannot_be_written_are_refused_at_once(lorax, capsys, place, words):
    Path("file").write_text("in the way")
    assert lorax(*words, results=place) == 2
    assert place in one_line(capsys) and [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize(
    "room, words",
    [
        pytest.param(room, words, id=f"{name}-{room}", marks=() if (name, room) in FULL else pytest.mark.slow)
        for name, words in LAUNCHED.items()
        for room in (0, 1, 40)
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(lorax, capsys, monkeypatch, words, room):
    left = [room]

    def full(handle, sync=os.fsync):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code = lorax(*words)
    if room < 40:
        assert code == 2 and "No space left on device" in one_line(capsys)
        assert not records() and not [path for path in left_over() if path.suffix != ".lock"]
    else:
        assert code == 0


def test_a_failing_and_a_diverging_run_leave_their_pack_going(lorax, capsys, monkeypatch):
    from lorax.initializers.registry import get

    def broken(self, probe):
        raise RuntimeError("no convergence")

    grid = [*PACK, "init=lora,pissa", "lr=0.01,1e30", "train.clip=null"]
    with monkeypatch.context() as patch:
        patch.setattr(get("milora"), "__call__", broken)
        assert lorax(*[word.replace("lora,pissa", "lora,pissa,milora") for word in grid]) == 1
    printed = capsys.readouterr()
    assert "2 of 6 jobs failed, all with: RuntimeError: no convergence" in printed.err and "1 diverged" in printed.out
    status = {(r.config["init"]["name"], r.config["lr"]): r.status for r in records().values()}
    assert status == {
        ("lora", 0.01): "finished", ("lora", 1e30): "diverged", ("pissa", 0.01): "finished",
        ("pissa", 1e30): "diverged", ("milora", 0.01): "failed", ("milora", 1e30): "failed",
    }  # fmt: skip
    before = {key: record for key, record in records().items() if record.status != "failed"}
    assert lorax(*[word.replace("lora,pissa", "lora,pissa,milora") for word in grid]) == 0
    assert capsys.readouterr().out.count("skipped") == 4
    after = records()
    assert {key: after[key] for key in before} == before and len(after) == 6 and not left_over()


@pytest.mark.slow
def test_a_diverged_arm_is_a_result_of_its_study(lorax, capsys):
    words = [word for word in STUDY if not word.startswith("study.arms")]
    assert lorax(*words, "study.arms=[lora,{init: lora_ga, lr: 1e25}]", "train.clip=null", small=False) == 0
    printed = capsys.readouterr().out
    assert "2 diverged" in printed and "2 of 2 final runs of lora_ga diverged" in printed
    arms = [r for r in records("toy").values() if r.label == "lora_ga" and r.provenance["tag"] != "toy.cost"]
    assert {record.status for record in arms} == {"diverged"} and len(arms) == 14


def test_ctrl_c_in_a_pack_leaves_no_record_and_no_difference(lorax, capsys, monkeypatch):
    from lorax.training.update import Update

    # One run diverges before the interrupt; when the pack resumes, it is in the same lane as before.
    grid = [*PACK, "init=lora,pissa", "lr=0.01,1e30", "train.clip=null", "steps=8", "train.checkpoint_every=3"]
    assert lorax(*grid, results="whole") == 0
    step = Update.apply

    def interrupted(self, *numbers):
        if self.first.step == 7:
            raise KeyboardInterrupt
        step(self, *numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Update, "apply", interrupted)
        assert lorax(*grid) == 130
    assert "the same command goes on" in capsys.readouterr().err and not records()
    assert lorax(*grid) == 0
    assert outcome(records()) == outcome(records(results="whole"))
    resumed = {record.status: record.provenance["resumed_at"] for record in records().values()}
    assert resumed == {"finished": 6, "diverged": 2} and not left_over() and not list(Path().rglob("*.pt"))


def test_records_of_other_versions_are_reported_and_never_mixed(lorax, capsys, monkeypatch):
    assert lorax("-m", "init=lora,pissa", "rank=2", "base=false", "lr=0.01") == 0
    old = records()
    monkeypatch.setitem(identity.VERSIONS, "training", 2)
    capsys.readouterr()
    for record in old.values():  # as if they had been made yesterday
        record.provenance["finished"] = "2000-01-01T00:00:00+00:00"
        Store("results").write(record)
    assert lorax("-m", "init=lora", "rank=2", "base=false", "lr=0.01") == 0
    table = capsys.readouterr().out
    assert "| lora" in table and "| pissa" not in table
    assert all(f"{key} (another versions.training)" in table for key in old)


@pytest.mark.slow
def test_a_finished_study_whose_records_are_stale_is_run_again(lorax, capsys, monkeypatch):
    assert lorax(*STUDY, small=False) == 0
    old = outcome(records("toy"))
    with monkeypatch.context() as patch:
        patch.setitem(identity.VERSIONS, "training", 2)
        capsys.readouterr()
        assert lorax(*STUDY, small=False) == 0
        printed = capsys.readouterr().out
    assert f"stale: {len(old)} records (another versions.training" in printed and "toy: tune, 12 runs" in printed
    assert f"{len(old)} stale records are left out" in printed and len(records("toy")) == 2 * len(old)
    assert lorax(*STUDY, small=False) == 0  # back again: the first records are there
    printed = capsys.readouterr().out
    assert "runs" not in printed.partition("stale")[2].partition("# toy")[0] and len(records("toy")) == 2 * len(old)


def test_a_study_that_was_fixed_before_it_had_an_estimand_goes_on_as_it_was(lorax, capsys):
    words = [word for word in STUDY if not word.startswith("study.estimand")]
    plan = [*words, "~study.estimand", "study.costs=false", "study.plan=true"]
    assert lorax(*plan, small=False) == 0
    assert "estimand method: each method at its best learning rate" in capsys.readouterr().out
    older = {"name": "toy", "model": "toy", "tasks": ["toy"], "reference": "lora", "margin": 0.1, "arms": ["lora"]}
    path = freeze(from_mapping(older | {"estimand": "rate"}), "results")
    assert "estimand" not in path.read_text()
    assert lorax(*plan, small=False) == 0
    assert "estimand rate: at the selected rates" in capsys.readouterr().out


def test_files_written_together_are_all_there_or_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unwritable, match="file/b"):
        write_together([(tmp_path / "a", "1"), (tmp_path / "file/b", "2")])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    write_together([(tmp_path / "a", "1"), (tmp_path / "deep/b", "2")])
    assert (tmp_path / "a").read_text() + (tmp_path / "deep/b").read_text() == "12"


def test_a_claim_clears_what_a_kill_left_and_goes_when_the_run_is_over(tmp_path):
    store = Store(tmp_path)
    debris = [store.folder("n") / ".r.json.xyz", store.folder("n") / ".r.items.jsonl.gz.xyz"]
    debris.append(store.state("n", "r") / ".checkpoint.pt.xyz")
    for path in debris:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with store.claim("n", "r") as record:
        assert record is None and not any(path.exists() for path in debris)
    assert left_over(tmp_path)  # not over yet: the lock may be waited for
    with store.claim("n", "r") as record:
        store.write(RunRecord(run_id="r", name="n", status="finished", config={}, identity={}))
    assert not left_over(tmp_path)
    with store.claim("n", "r") as record:
        assert record.run_id == "r"
    assert not left_over(tmp_path)


def test_packs_of_what_is_left_are_the_packs_there_were(lorax):
    from hydra import compose, initialize_config_dir

    from lorax.config import conf_dir, register_schema, resolve

    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        one = resolve(compose("config", overrides=["model=toy", "task=toy"]))
    jobs = [replace(one, seed=seed) for seed in range(10)]
    whole = make_packs(jobs, 4)
    assert [len(pack) for pack in whole] == [4, 4, 2]
    for done in range(3):
        left = [number for pack in whole[done:] for number in pack]
        assert [[left[at] for at in pack] for pack in make_packs([jobs[number] for number in left], 4)] == whole[done:]
