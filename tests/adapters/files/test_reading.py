"""Nothing that is stored is believed: one line, and the model is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorax.adapters import baselines
from lorax.adapters.files import reading
from lorax.adapters.files.format import digest_header
from lorax.adapters.install import find_targets, install
from lorax.adapters.load import load
from lorax.errors import UserError


@pytest.fixture
def folder(net, make, shake, tmp_path):
    shake(install(model := net(), make("pissa", find_targets(model)))).save(tmp_path / "a", quiet=True)
    return tmp_path / "a"


def header(folder, change, seal=True):
    """Edit adapter.json; with a fitting digest, as a careful forger would."""
    data = json.loads((folder / "adapter.json").read_text())
    data = change(data) or data
    if seal and isinstance(data, dict):
        data["digest"] = digest_header(data)
    (folder / "adapter.json").write_text(json.dumps(data))


def tensors(folder, change):
    """Edit adapter.safetensors, with fitting digests."""
    state = load_file(folder / "adapter.safetensors")
    state = change(state) or state
    save_file(state, folder / "adapter.safetensors", metadata={"format": "pt"})
    sha256 = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    header(folder, lambda data: data.update(sha256=sha256))


def refused(net, folder, match, model=None):
    """The folder is refused in one short line, and nothing of the model has changed."""
    model = model or net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules, flags = list(model.modules()), [p.requires_grad for p in model.parameters()]
    with warnings.catch_warnings(), pytest.raises(UserError, match=match) as caught:
        warnings.simplefilter("ignore")
        load(model, folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert list(model.modules()) == modules and [p.requires_grad for p in model.parameters()] == flags
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def key(folder, end):
    return next(key for key in load_file(folder / "adapter.safetensors") if key.endswith(end))


EDITS = {
    "a larger eta": (lambda d: d["layers"]["up"].update(eta=1000 * d["layers"]["up"]["eta"]), "match its digest"),
    "another rank of the report": (lambda d: d["info"].update(rank=3), "match its digest"),
    "another digest": (lambda d: d.update(digest="0" * 64), "match its digest"),
}  # fmt: skip
FORGED = {
    "a list": (lambda d: [d], "holds list, where an object is needed"),
    "a number": (lambda d: 3, "holds int"),
    "no format": (lambda d: d.pop("format") and None, "format None is no format"),
    "a format as text": (lambda d: d.update(format="2"), "format '2' is no format"),
    "a newer format": (lambda d: d.update(format=9), "format 9, this version reads up to 2"),
    "no layers": (lambda d: d.pop("layers") and None, "lacks 'layers'"),
    "empty layers": (lambda d: d.update(layers={}), "names no adapted layer"),
    "layers as a list": (lambda d: d.update(layers=[1]), r"layers=\[1\] is of another type"),
    "a layer as text": (lambda d: d["layers"].update(up="x"), "layer 'up' is 'x', not a mapping"),
    "a layer without eta": (lambda d: d["layers"]["up"].pop("eta") and None, "up cannot be built: 'eta' is missing"),
    "a layer without a core": (lambda d: d["layers"]["up"].pop("core") and None, "'core' is missing"),
    "another core": (lambda d: d["layers"]["up"].update(core={"kind": "dense"}), "the adapter of up cannot be built"),
    "an unknown core": (lambda d: d["layers"]["up"].update(core={"kind": "odd"}), "unknown core 'odd'"),
    "eta as text": (lambda d: d["layers"]["up"].update(eta="1"), "eta='1' is not a finite number"),
    "eta NaN": (lambda d: d["layers"]["up"].update(eta=float("nan")), "eta=nan is not a finite number"),
    "half a fingerprint": (lambda d: d["layers"]["up"].pop("sample") and None, "sample of its base weight"),
    "a sample of texts": (
        lambda d: d["layers"]["up"].update(sample=["x"], digest="0"), "of the base weight up cannot be read"
    ),
    "another kind": (lambda d: d.update(kind="adaptor"), "kind 'adaptor'; did you mean 'adapter'"),
    "no sha256": (lambda d: d.pop("sha256") and None, "lacks 'sha256'"),
    "an unknown plan": (lambda d: d["layers"]["up"].update(plan="factor"), "did you mean 'factors'"),
    "a head that is not there": (lambda d: d.update(heads=["up.bias"]), "names a head 'up.bias' whose tensor"),
    "dropout as text": (lambda d: d.update(dropout="0"), "dropout='0' is of another type"),
    "dropout beyond 1": (lambda d: d.update(dropout=2), "dropout"),
    "another recentring": (lambda d: d.update(recenter="cary"), "did you mean 'carry'"),
    "a parent folder": (lambda d: d.update(tensors="../x"), "'../x': a plain file name is needed"),
    "an absolute path": (lambda d: d.update(tensors="/etc/passwd"), "'/etc/passwd': a plain file name is needed"),
    "no name": (lambda d: d.update(tensors=""), "a plain file name is needed"),
    "a file that is not there": (lambda d: d.update(tensors="b.safetensors"), "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_header_is_refused(net, folder, name):
    header(folder, EDITS[name][0], seal=False)
    refused(net, folder, EDITS[name][1])


@pytest.mark.parametrize("name", FORGED)
def test_a_header_with_a_fitting_digest_is_checked_all_the_same(net, folder, name):
    header(folder, FORGED[name][0])
    refused(net, folder, FORGED[name][1])


@pytest.mark.parametrize(
    "raw", [b"", b"\xff\xfe", b"{" * 20, b"[" * 200_000, b'{"format": ' + b"1" * 5000 + b"}", b'{"a": 1', b"\0"]
)
def test_bytes_that_are_no_header_are_one_line(net, folder, raw):
    (folder / "adapter.json").write_bytes(raw)
    refused(net, folder, "adapter.json: cannot be read")


def test_every_flipped_byte_of_either_file_is_noticed(net, folder):
    """A sample of bytes over both files, the first and last ones among them."""
    for name in ("adapter.safetensors", "adapter.json"):
        raw = (folder / name).read_bytes()
        for position in sorted({0, len(raw) - 2, *range(7, len(raw), len(raw) // 12)}):
            flipped = bytearray(raw)
            flipped[position] ^= 1
            (folder / name).write_bytes(flipped)
            same = name.endswith("json") and _json(flipped) == _json(raw)  # a blank for another is no change
            if not same:
                refused(net, folder, "damaged|cannot be read|edited|format|lacks|type|kind")
        (folder / name).write_bytes(raw)
    load(net(), folder)


def _json(raw):
    try:
        return json.loads(bytes(raw))
    except ValueError:
        return None


def test_tensors_are_compared_with_what_the_header_says(net, folder):
    raw = {name: (folder / name).read_bytes() for name in ("adapter.json", "adapter.safetensors")}
    name = key(folder, "up.lanes.0.dB")
    edits = [
        (lambda s: s[name].view(-1)[0].fill_(float("nan")) * 0 and None, f"{name} holds NaN or Inf"),
        (lambda s: s[name].view(-1)[0].fill_(float("inf")) * 0 and None, f"{name} holds NaN or Inf"),
        (lambda s: {**s, name: s[name].half()}, f"{name} is .'float16'"),
        (lambda s: {**s, name: s[name].mT.contiguous()}, f"{name} is "),
        (lambda s: {k: v for k, v in s.items() if k != name}, f"lacks the tensor '{name}'"),
    ]
    for change, match in edits:
        tensors(folder, change)
        refused(net, folder, match)
        for file, content in raw.items():
            (folder / file).write_bytes(content)
    for size in (0, 4, 60, len(raw["adapter.safetensors"]) - 1):
        (folder / "adapter.safetensors").write_bytes(raw["adapter.safetensors"][:size])
        refused(net, folder, "damaged")
        sha256 = hashlib.sha256(raw["adapter.safetensors"][:size]).hexdigest()
        header(folder, lambda data, sha256=sha256: data.update(sha256=sha256))
        refused(net, folder, "adapter.safetensors: cannot be read")
        (folder / "adapter.json").write_bytes(raw["adapter.json"])
    huge = (10**12).to_bytes(8, "little") + b"{}"
    (folder / "adapter.safetensors").write_bytes(huge)
    header(folder, lambda data: data.update(sha256=hashlib.sha256(huge).hexdigest()))
    refused(net, folder, "cannot be read")


def test_a_tensor_of_no_layer_and_a_shape_that_does_not_fit_are_refused(net, folder):
    """Index and digests fit; the adapters themselves do not."""
    extra = {"elsewhere.lanes.0.B": torch.zeros(2)}
    tensors(folder, lambda s: {**s, **extra})
    header(folder, lambda d: d["index"].update({"elsewhere.lanes.0.B": ["float32", [2]]}))
    refused(net, folder, "elsewhere.lanes.0.B belongs to no adapted layer")
    tensors(folder, lambda s: {k: v for k, v in s.items() if k not in extra})
    header(folder, lambda d: d["index"].pop("elsewhere.lanes.0.B") and None)
    load(net(), folder)
    name = key(folder, "up.lanes.0.dB")
    tensors(folder, lambda s: {**s, name: s[name][:-1].contiguous()})
    header(folder, lambda d: d["index"].update({name: [d["index"][name][0], [d["index"][name][1][0] - 1, 2]]}))
    refused(net, folder, "up.dB: shape")


def test_links_must_stay_in_the_folder(net, folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    os.replace(folder / "adapter.safetensors", outside)
    (folder / "adapter.safetensors").symlink_to(outside)
    refused(net, folder, "is a link that leaves the folder")
    (folder / "adapter.safetensors").unlink()
    os.replace(outside, folder / "real.safetensors")
    (folder / "adapter.safetensors").symlink_to("real.safetensors")
    load(net(), folder)
    (folder / "adapter.safetensors").unlink()
    hub = tmp_path / "models--me--it"  # the hub's cache: snapshots/<commit>/<file> -> ../../blobs/<digest>
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots" / "c0ffee").mkdir(parents=True)
    for source, name in (("real.safetensors", "adapter.safetensors"), ("adapter.json", "adapter.json")):
        os.replace(folder / source, hub / "blobs" / name)
        (hub / "snapshots" / "c0ffee" / name).symlink_to(f"../../blobs/{name}")
    load(net(), hub / "snapshots" / "c0ffee")


def test_an_older_folder_loads_with_one_line(net, make, shake, tmp_path):
    model = net()
    shake(install(model, make("xs", find_targets(model)))).save(tmp_path, quiet=True)

    def older(data):
        for added in ("sha256", "index", "digest"):
            del data[added]
        data["format"] = 1

    header(tmp_path, older, seal=False)
    fresh, x = net(), torch.randn(3, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="stored before digests; not verified"):
        load(fresh, tmp_path)
    assert torch.equal(fresh(x), model(x))
    header(tmp_path, lambda d: d["layers"]["up"].pop("shape") and None, seal=False)
    refused(net, tmp_path, "shape of its base weight is missing")
    raw = (tmp_path / "adapter.safetensors").read_bytes()
    (tmp_path / "adapter.safetensors").write_bytes(raw[:-3])
    refused(net, tmp_path, "shape of its base weight|cannot be read")


@pytest.mark.parametrize("edit", ["flip", "drop", "extra"])
def test_a_wholly_trained_model_is_checked_alike(net, shake, tmp_path, edit):
    shake(baselines.FullModel(net())).save(tmp_path, quiet=True)
    if edit == "flip":
        raw = bytearray((tmp_path / "adapter.safetensors").read_bytes())
        raw[-1] ^= 1
        (tmp_path / "adapter.safetensors").write_bytes(raw)
        refused(net, tmp_path, "damaged")
    else:
        renamed = {"up.bias": "other.bias"} if edit == "extra" else {"up.bias": None}
        tensors(tmp_path, lambda s: {renamed.get(k, k): v for k, v in s.items() if renamed.get(k, k)})
        if edit == "extra":
            header(tmp_path, lambda d: d["index"].update({"other.bias": d["index"].pop("up.bias")}))
        refused(net, tmp_path, "the saved model holds other.bias" if edit == "extra" else "lacks the tensor 'up.bias'")


def test_what_lies_at_the_place_is_named(net, folder, tmp_path):
    with pytest.raises(UserError, match="one level down are a$"):
        load(net(), tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load(net(), tmp_path / "nothing")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="PEFT's format, which lorax.load reads"):
        load(nn.Linear(2, 2), tmp_path / "peft")


def test_a_header_without_end_is_not_read(net, folder, monkeypatch):
    monkeypatch.setattr(reading, "_BYTES", 100)
    refused(net, folder, "adapter.json: .* bytes; a header has at most 100")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_damage_of_any_kind_is_noticed(net, folder, seed):
    """Bits flipped, stretches cut, doubled or zeroed, files exchanged: refused, or nothing has changed."""
    draw = random.Random(seed)
    whole = {name: (folder / name).read_bytes() for name in ("adapter.json", "adapter.safetensors")}
    for _ in range(150):
        name = draw.choice(sorted(whole))
        raw = bytearray(whole[name])
        start, length = draw.randrange(len(raw)), draw.randrange(1, 40)
        how = draw.choice(["bit", "cut", "double", "zero", "text", "end"])
        if how == "bit":
            raw[start] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del raw[start : start + length]
        elif how == "double":
            raw[start:start] = raw[start : start + length]
        elif how == "zero":
            raw[start : start + length] = bytes(len(raw[start : start + length]))
        elif how == "text":
            raw[start : start + 1] = draw.choice([b"\n", b"NaN", b"[[", b"9" * 30, b"\xed\xa0\x80"])
        else:
            del raw[start:]
        (folder / name).write_bytes(raw)
        same = bytes(raw) == whole[name] or (name.endswith("json") and _json(raw) == _json(whole[name]))
        if same:
            load(net(), folder)
        else:
            refused(net, folder, ".")
        (folder / name).write_bytes(whole[name])
