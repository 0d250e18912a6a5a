"""The papers' recipes: each composes with the paper's numbers, and starts on a stand-in model and stand-in data."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lorax.config import conf_dir, register_schema, resolve

PAPERS = {
    # rank, alpha, lr, batch_size, steps, of the paper
    "lora": ("lora", 8, 8, 5e-4, 16, 22000), "lora_ga": ("lora_ga", 8, 16, 2e-5, 128, 781),
    "pissa": ("pissa", 128, 128, 2e-5, 128, 781), "milora": ("milora", 64, 64, 3e-4, 16, 74000),
    "lora_xs": ("lora_xs", 64, 64, 4e-3, 128, 1562), "svft": ("svft", 8, None, 5e-2, 64, 1250),
}  # fmt: skip
FILES = sorted((conf_dir() / "experiment" / "paper").glob("*.yaml"))


def composed(*overrides):
    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("config", overrides=list(overrides)))


def test_every_paper_has_a_recipe_that_says_its_command():
    assert {path.stem for path in FILES} == PAPERS.keys()
    for path in FILES:
        assert f"python -m lorax.run experiment=paper/{path.stem}" in path.read_text()


@pytest.mark.parametrize("name", ["lora_ga", *[pytest.param(one, marks=pytest.mark.slow) for one in PAPERS]])
def test_every_recipe_composes_with_the_paper_s_numbers(name):
    config = composed(f"experiment=paper/{name}")
    found = (config.init["name"], config.rank, config.alpha, config.lr, config.batch_size, config.steps)
    assert found == PAPERS[name] and config.name == f"paper_{name}"
    if name != "lora":
        epochs = config.steps * config.batch_size / (config.task["first"] or 395_000)
        assert epochs == pytest.approx({"milora": 3, "lora_xs": 2, "svft": 2}.get(name, 1), rel=1e-2)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Folders of a tiny Llama and a tiny RoBERTa, and small files of the papers' data."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    from lorax.models.registry import load

    folder = tmp_path_factory.mktemp("stand_ins")
    loaded = load({"name": "toy", "hidden": 32, "context": 1024}, dtype="float32")
    loaded.tokenizer.chat_template = None  # the papers' models have none
    loaded.model.save_pretrained(folder / "llama")
    loaded.tokenizer.save_pretrained(folder / "llama")
    config = RobertaConfig(vocab_size=261, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=64, max_position_embeddings=512, pad_token_id=256)  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder / "roberta")
    loaded.tokenizer.save_pretrained(folder / "roberta")
    rows = [{"query": f"What is {i} + 1?", "response": f"#### {i + 1}\nThe answer is: {i + 1}", "type": "GSM_AnsAug"}
            for i in range(260)]  # fmt: skip
    tests = [{"question": f"Tom has {i} apples?", "answer": f"#### {i}"} for i in range(4)]
    texts = [
        {"text": f"{i} is {'good' if i % 2 else 'bad'}", "label_text": "yes" if i % 2 else "no"} for i in range(60)
    ]
    for name, some in (("train", rows), ("problems", tests), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_starts_on_stand_ins(lorax, stand_ins, name):
    own = [f"model.path={stand_ins / 'llama'}", f"task.path={stand_ins / 'train.jsonl'}", "train.accumulation=1"]
    own += [f"task.problems={stand_ins / 'problems.jsonl'}", "task.max_new_tokens=4"]
    if name == "lora":
        own = [f"model.path={stand_ins / 'roberta'}", f"task.path={stand_ins / 'texts.jsonl'}"]
    small = ["steps=2", "batch_size=4", "rank=4", "alpha=4", "dtype=float32", "track=none", "base=false"]
    assert lorax(f"experiment=paper/{name}", *own, *small, small=False) == 0
    (record,) = [json.loads(path.read_text()) for path in Path("results/records").rglob("*.json")]
    assert record["status"] == "finished" and record["config"]["init"]["name"] == PAPERS[name][0]
    assert record["config"]["lr"] == PAPERS[name][3] and record["scores"]["test"]["n"] >= 4
