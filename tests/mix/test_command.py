"""`python -m lorax.mix`: a record and a table like a run, no item of the scored splits, lanes, a killed search."""

import json
import re
from pathlib import Path

import pytest
import torch

import lorax
from lorax.config import RunConfig
from lorax.forward.text import TextModality
from lorax.mix import command, fitness
from lorax.mix.__main__ import main
from lorax.mix.command import mixture
from lorax.mix.compose import mix
from lorax.mix.experts import read_experts
from lorax.mix.fitness import Fitnesses, few, spread
from lorax.mix.settings import Settings
from lorax.models.registry import load
from lorax.records import RunRecord, Store, run_id
from lorax.running.preflight import load_task

MODEL = {"name": "toy", "hidden": 16, "layers": 1}
WORDS = [
    "model=toy", "model.hidden=16", "model.layers=1", "task=toy", "task.n_test=8", "task.n_validation=8",
    "dtype=float32", "name=mixes", "mix.items=6", "mix.population=5", "mix.generations=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Two SVF experts and two LoRAs of the toy model, in folders."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(["svf0", "svf1", "lora0", "lora1"]):
        model = load(MODEL).model
        adapters = lorax.attach(model, name[:-1], **({"rank": 2} if name.startswith("lora") else {}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        adapters.save(folder / name, quiet=True)
    return folder


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def pair(folder, kind="svf"):
    return [str(folder / f"{kind}0"), str(folder / f"{kind}1")]


def result(record):
    found = record.init_report["mix"]
    return found["coefficients"], found["fitness"], found["history"], record.scores


def test_a_mixture_has_a_record_a_table_and_an_ordinary_adapter(experts, capsys):
    assert main([*pair(experts), *WORDS, "save=mixed"]) == 0
    printed = capsys.readouterr().out
    assert "13 evaluations" in printed and "singular_values" in printed
    [path] = [p for p in Path("results/records/mixes").glob("*.json") if '"mix"' in p.read_text()]
    record = RunRecord.from_json(path.read_text())
    assert record.run_id == run_id(record.identity) and record.costs["trainable"] == 2
    coefficients = record.init_report["mix"]["coefficients"]
    assert all(sum(each) == pytest.approx(1) for each in coefficients.values())
    table = Path("results/tables/mixes.md").read_text()
    assert "| mix " in table and "| none " in table and "6 train items, 13 evaluations" in table
    assert "Learning rates" not in table  # none trained
    model = load(MODEL).model
    adapters = lorax.load(model, Path("mixed") / record.run_id)
    wanted = mix(read_experts(load(MODEL).model, [Path(p) for p in pair(experts)]), coefficients, "singular_values")
    for name, factors in adapters.factors().items():
        assert torch.equal(factors.M.values, wanted[name].M.values)
    assert main([*pair(experts), *WORDS, "save=mixed"]) == 0
    assert "finished before, skipped" in capsys.readouterr().out


def test_the_search_reads_no_item_that_is_scored(experts, monkeypatch):
    seen, encode = [], TextModality.encode

    def spy(self, task, split, shots=False):
        rows = encode(self, task, split, shots)
        seen.append((task, split, {row.example.id for row in rows}))
        return rows

    monkeypatch.setattr(TextModality, "encode", spy)
    record = mixture([*pair(experts), *WORDS, "evaluate=validation", "base=false"])
    whole = load_task(RunConfig(**{key: record.config[key] for key in ("task", "data_seed")}))
    train, test = ({example.id for example in getattr(whole, split)} for split in ("train", "test"))
    *searching, (_, last, _) = seen
    assert len(searching) == 3 and last == "validation"
    for task, _, ids in searching:
        assert task.test == task.validation == () and len(ids) == 6 and ids <= train
    assert not set().union(*(ids for _, _, ids in seen)) & test and record.scores.keys() == {"validation"}


def test_lanes_and_one_by_one_are_equal_and_memory_halves_them(experts, monkeypatch):
    loaded = load(MODEL, dtype="float64")
    for module in loaded.model.parameters():
        assert module.dtype == torch.float64
    whole = load_task(RunConfig(task={"name": "toy", "n_train": 16, "n_test": 4, "n_validation": 4, "n_heldout": 8}))
    settings = Settings(items=5, split="heldout", per="layer", fitness="loss", population=4)
    task = few(whole, settings, seed=0)
    assert {one.id for one in task.train} <= {one.id for one in whole.heldout}
    # experts of the float64 base, made here: another dtype is another base
    folders = []
    for seed in range(2):
        adapters = lorax.attach(loaded.model, "lora", rank=2 + seed)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(0.3)
        adapters.save(f"e{seed}", quiet=True)
        adapters.detach()
        folders.append(Path(f"e{seed}"))
    mixed = read_experts(loaded.model, folders)
    count = 2 * len(mixed[0].factors)
    candidates = torch.rand(4, count, generator=torch.Generator().manual_seed(0)).numpy()
    candidates[1, 0] = 0.0  # a lane whose layer has one expert only
    together = Fitnesses(loaded, task, mixed, settings, "sum", False)
    single = Fitnesses(loaded, task, mixed, Settings(**settings.consumed(), lanes=1), "sum", False)
    expected = single(candidates)
    torch.testing.assert_close(torch.tensor(together(candidates)), torch.tensor(expected), rtol=0, atol=1e-12)
    assert len({one for [one] in expected}) == 4
    pack = Fitnesses._pack

    def small(self, chosen):
        if len(chosen) > 1:
            raise MemoryError
        return pack(self, chosen)

    monkeypatch.setattr(fitness.Fitnesses, "_pack", small)
    assert together(candidates) == expected and together.lanes == 1


def test_a_killed_search_goes_on_and_a_seed_is_a_result(experts, monkeypatch):
    words = [*pair(experts, "lora"), *WORDS, "base=false", "mix.per=layer", "mix.fitness=loss", "mix.compose=factors"]
    whole = mixture([*words, "results_dir=whole"])
    write, times = command.write_atomic, []

    def stop(path, text):
        write(path, text)
        times.append(json.loads(text)["generation"])
        if len(times) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "write_atomic", stop)
    with pytest.raises(KeyboardInterrupt):
        mixture([*words, "results_dir=killed"])
    assert not list(Path("killed/records").rglob("*.json"))
    again = mixture([*words, "results_dir=killed"])
    assert times == [1, 2, 3] and result(again) == result(whole) and again.run_id == whole.run_id
    assert not list(Path("killed/state").rglob("search.json"))
    assert Store("killed").read("mixes")[0].init_report["mix"]["compose"] == "factors"


def test_coefficients_are_spread_over_layers(experts):
    mixed = read_experts(load(MODEL).model, [Path(p) for p in pair(experts)])
    names = sorted(mixed[0].factors)
    table = spread(range(2 * len(names)), Settings(per="layer"), mixed, normalise=False)
    assert table[names[1]] == [2, 3] and list(table) == names
    assert spread([1, 3], Settings(), mixed, normalise=True)[names[0]] == [0.25, 0.75]
    assert spread([0, 0], Settings(), mixed, normalise=True)[names[0]] == [0.5, 0.5]


def test_errors_are_one_line_and_nothing_is_written(experts, capsys):
    one, two = pair(experts)
    for words, line in [
        ([], "no adapter to mix"),
        ([one, one], "named twice"),
        ([one, "nothing"], "nothing is no folder"),
        ([one, two, "lr=1"], "lr: a mixture trains nothing"),
        ([one, two, "mix.pr=layer"], "mix.pr: no such key; did you mean 'mix.per'|mix.pr: no such key; did you mean"),
        ([one, two, "mix.per=x"], "mix.per=x: choose from all, layer"),
        ([one, two, "mix.items=0"], "mix.items=0: must be between 1"),
        ([one, two, "mix.items=2.5"], "mix.items=2.5: must be a whole number"),
        ([one, two, "mix.floor=nan"], "mix.floor=nan: must be a number"),
        ([one, two, "mix.low=2"], "mix.low=2: must be below mix.high=1"),
        ([one, two, "mix.normalise=3"], "mix.normalise=3: must be true or false"),
        ([one, two, "mix.items=1000"], "task=toy has 512 train examples"),
        ([one, two, "mix.split=test"], "mix.split=test: choose from train, heldout"),
        ([one, two, "task=tyo"], "task=tyo: did you mean 'toy'"),
        ([one, str(experts / "lora0"), "mix.compose=singular_values"], "needs SVF's vectors"),
        ([one, two, "task=toy_classification"], "its head .* is trained apart"),
        (["--x", one], "--x: no such option"),
    ]:
        assert main([*words[:2], *WORDS, *words[2:]]) == 2, words
        told = capsys.readouterr().err
        assert re.search(line, told) and told.count("\n") == 1, (words, told)
    assert not list(Path().rglob("*.json"))
