"""Machine translation from the command line: any seq2seq model, scores in record, table and summary."""

import math
from pathlib import Path

import pytest
from transformers import MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

from lorax.models import load
from lorax.records import Store
from lorax.records.integrity import disagreement, means_of

TINY = {"vocab_size": 261, "d_model": 16, "eos_token_id": 257, "pad_token_id": 256, "decoder_start_token_id": 256}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
MODELS = {
    "t5": lambda: T5ForConditionalGeneration(T5Config(**TINY, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
    "marian": lambda: MarianMTModel(
        MarianConfig(**TINY, **LAYERS, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64)
    ),
}


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with a tiny random model and byte tokens, and pairs beside it, the last of them long."""

    def make(name):
        made = tmp_path / name
        model = MODELS[name]()
        model.generation_config.forced_eos_token_id = None
        model.save_pretrained(made)
        load({"name": "toy"}).tokenizer.save_pretrained(made)
        pairs = [f"a b {k}\tc d {k}" for k in range(60)]
        Path("pairs.tsv").write_text("\n".join(["en\tpt", *pairs, f"a {'long ' * 20}\tc d"]) + "\n")
        return str(made)

    return make


@pytest.mark.parametrize("name", ["t5", pytest.param("marian", marks=pytest.mark.slow)])
def test_any_seq2seq_model_translates(lorax, folder, capsys, name):
    words = ["task=translation", "task.path=pairs.tsv", "task.source=en", "task.target=pt", "task.n_test=6"]
    words += ["task.max_tokens=24", "task.max_new_tokens=6", "task.n_validation=4"]
    small = ["steps=2", "batch_size=4", "init=lora", "rank=2"]
    assert lorax("model=hf", f"model.path={folder(name)}", *words, *small) == 0
    run, base = sorted(Store("results").read("small"), key=lambda record: -record.costs["trainable"])
    scores, items = run.scores["test"], Store("results").items(run)
    assert run.task["metric"] == "chrf" and run.task["floor_is"] == "copying the source" and run.task["majority"] > 0
    assert math.isclose(scores["score"], sum(item["score"] for item in items) / 6) and scores["tolerant"] is None
    assert {"chrf", "bleu", "exact", "sd"} <= scores.keys() and "nc:6" in scores["signatures"]["chrf"]
    assert all({"completion", "answer", "loss", "exact"} <= item.keys() for item in items)
    assert disagreement(run, means_of(items)) is None and base.scores["test"]["n"] == 6
    table = Path("results/tables/small.md").read_text()
    assert "translation: chrf, 6 items, copying the source" in table
    out = capsys.readouterr()
    assert "translation train: 1 inputs and 0 answers of" in out.err or "cut to" not in out.err
    half = 1.96 * scores["sd"] / 6**0.5
    low, high = (100 * (scores["score"] + sign * half) for sign in (-1, 1))
    assert f"% chrf (95 % interval over 6 items {low:.1f} to {high:.1f})" in " ".join(out.out.split())
    assert "bleu" in out.out
