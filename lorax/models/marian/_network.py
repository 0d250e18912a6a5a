"""Marian's small translation model: a transformer encoder, a decoder of simple recurrent units; all matrices nn.Linear.

    encoder layer   h = LN(x + attention(x)),  y = LN(h + W2 relu(W1 h))
    decoder layer   f_t = sigmoid(W_f x_t + b_f),  c_t = f_t c_(t-1) + (1 - f_t) W x_t,  h = LN(x + relu(c))
                    g = LN(h + attention(h; encoder)),  y = LN(g + W2 relu(W1 g))
    inputs          sqrt(d) E[token] + [sin | cos](position);  in the decoder E of the start is the zero vector
    logits          E h + b

Source: Junczys-Dowmunt et al., Marian (arXiv:1804.00344); Kim et al., simpler simple recurrent unit (arXiv:1910.00553).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

EPS = 1e-6
Memory = tuple[Tensor, Tensor]
"""Keys and values of the encoder's output for one decoder layer, each (rows, heads, S, d / heads)."""


class StudentConfig(PreTrainedConfig):
    """Sizes of a student; the defaults are those of Firefox Translations' "tiny" models."""

    model_type = "marian_student"

    def __init__(
        self,
        vocab_size: int = 32_000,
        d_model: int = 256,
        ffn: int = 1536,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 2,
        max_position_embeddings: int = 512,
        **kwargs: Any,
    ):
        self.vocab_size, self.d_model, self.ffn, self.heads = vocab_size, d_model, ffn, heads
        self.encoder_layers, self.decoder_layers = encoder_layers, decoder_layers
        self.max_position_embeddings = max_position_embeddings
        super().__init__(
            **{
                "is_encoder_decoder": True, "eos_token_id": 0, "pad_token_id": 0, "unk_token_id": 1,
                "tie_word_embeddings": True, "decoder_start_token_id": 0, **kwargs,
            }
        )  # fmt: skip


class Attention(nn.Module):
    """Multi-head attention of queries to what `memory` made of their source."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
        self.v_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d)

    def memory(self, source: Tensor) -> Memory:
        """Return keys and values of a source, (rows, S, d)."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(self, x: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Return the attention's output, (rows, T, d); mask (rows, 1, 1, S) is True where a source token is real."""
        mixed = F.scaled_dot_product_attention(self._split(self.q_proj(x)), *memory, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class RecurrentUnit(nn.Module):
    """c_t = f_t c_(t-1) + (1 - f_t) W x_t with f_t = sigmoid(W_f x_t + b_f); the output is relu(c)."""

    def __init__(self, d: int):
        super().__init__()
        self.value_proj = nn.Linear(d, d, bias=False)
        self.forget_proj = nn.Linear(d, d)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the output, (rows, T, d), and the last state, (rows, d); the first is 0 where none is given."""
        forget = torch.sigmoid(self.forget_proj(x))
        fresh = (1 - forget) * self.value_proj(x)
        states = []
        for kept, new in zip(forget.unbind(1), fresh.unbind(1), strict=True):
            state = new if state is None else torch.addcmul(new, kept, state)
            states.append(state)
        assert state is not None
        return torch.stack(states, 1).relu(), state


class FeedForward(nn.Module):
    """W2 relu(W1 x)."""

    def __init__(self, d: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, inner), nn.Linear(inner, d)

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, T, d)."""
        return self.fc2(self.fc1(x).relu())


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added and then normalised."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.self_attn = Attention(config.d_model, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model, EPS)
        self.ffn = FeedForward(config.d_model, config.ffn)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model, EPS)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (rows, S, d)."""
        x = self.self_attn_layer_norm(x + self.self_attn(x, self.self_attn.memory(x), mask))
        return self.ffn_layer_norm(x + self.ffn(x))


class DecoderLayer(nn.Module):
    """Recurrence, attention to the encoder and feed-forward, each added and then normalised."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.rnn = RecurrentUnit(config.d_model)
        self.rnn_layer_norm = nn.LayerNorm(config.d_model, EPS)
        self.encoder_attn = Attention(config.d_model, config.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model, EPS)
        self.ffn = FeedForward(config.d_model, config.ffn)
        self.ffn_layer_norm = nn.LayerNorm(config.d_model, EPS)

    def forward(self, x: Tensor, state: Tensor | None, memory: Memory, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (rows, T, d) and the recurrence's last state."""
        recurrent, state = self.rnn(x, state)
        x = self.rnn_layer_norm(x + recurrent)
        x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, memory, mask))
        return self.ffn_layer_norm(x + self.ffn(x)), state


class MarianStudent(PreTrainedModel):
    """The whole model; the output head is the embedding, with a bias of its own."""

    config_class = StudentConfig
    config: StudentConfig
    _tied_weights_keys = {"lm_head.weight": "embed.weight"}

    def __init__(self, config: StudentConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of both languages."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Score translations.

        Args:
            input_ids: (rows, S) source tokens.
            attention_mask: (rows, S) 1 for tokens, 0 for padding; None: no padding.
            decoder_input_ids: (rows, T) the end token, which stands for the start, then the tokens so far.
            kwargs: `use_cache` and the like, which change nothing here.

        Returns:
            logits (rows, T, V).
        """
        assert decoder_input_ids is not None
        mask = _mask(attention_mask)
        hidden, _ = self._decode(decoder_input_ids, 0, None, self._memories(input_ids, mask), mask)
        return Seq2SeqLMOutput(logits=self.lm_head(hidden))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 128,
        eos_token_id: Sequence[int] = (0,),
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """Translate greedily; the unknown token is never chosen, as in Marian.

        Keys and values of the source are computed once, and a step reads one token: a decoder's memory of what it has
        written is its recurrent state. All rows go on until the last has ended, so that rows stay where they are.

        Args:
            input_ids: (rows, S) source tokens.
            attention_mask: (rows, S) 1 for tokens, 0 for padding.
            max_new_tokens: at most so many.
            eos_token_id: tokens that end a translation.
            pad_token_id: what stands after the end.
            kwargs: settings of other ways to decode; greedy is the only one here.

        Returns:
            (rows, 1 + T) the start token, then the translation.
        """
        mask = _mask(attention_mask)
        memories, states = self._memories(input_ids, mask), None
        written = [input_ids.new_full((len(input_ids), 1), self.config.decoder_start_token_id)]
        ends = input_ids.new_tensor(list(eos_token_id))
        done = torch.zeros_like(written[0], dtype=torch.bool)
        for place in range(max_new_tokens):
            hidden, states = self._decode(written[-1], place, states, memories, mask)
            logits = self.lm_head(hidden)
            logits[..., self.config.unk_token_id] = -torch.inf
            written.append(logits.argmax(-1).masked_fill(done, pad_token_id))
            done |= torch.isin(written[-1], ends)
            if bool(done.all()):
                break
        return torch.cat(written, 1)

    def _memories(self, ids: Tensor, mask: Tensor | None) -> list[Memory]:
        x = self._placed(self.embed(ids), 0)
        for layer in self.encoder:
            x = layer(x, mask)
        return [cast("DecoderLayer", layer).encoder_attn.memory(x) for layer in self.decoder]

    def _decode(
        self, ids: Tensor, first: int, states: list[Tensor] | None, memories: list[Memory], mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the decoder's output for tokens at positions first, first + 1, ... and the states after them."""
        is_start = (ids == self.config.decoder_start_token_id)[..., None]
        x, after = self._placed(self.embed(ids).masked_fill(is_start, 0.0), first), []
        for number, (layer, memory) in enumerate(zip(self.decoder, memories, strict=True)):
            x, state = layer(x, None if states is None else states[number], memory, mask)
            after.append(state)
        return x, after

    def _placed(self, x: Tensor, first: int) -> Tensor:
        """Return what enters the first layer for embedded tokens at positions first, first + 1, ..."""
        return math.sqrt(self.config.d_model) * x + _sinusoids(first, x.shape[1], self.config.d_model, x)


def _mask(attention_mask: Tensor | None) -> Tensor | None:
    return None if attention_mask is None else attention_mask.bool()[:, None, None]


def _sinusoids(first: int, length: int, d: int, like: Tensor) -> Tensor:
    """Return (length, d): the sines of all frequencies, then their cosines; frequency i is 10000^(-i / (d/2 - 1))."""
    frequencies = torch.exp(torch.arange(d // 2, device=like.device) * (-math.log(1e4) / (d // 2 - 1)))
    angles = torch.arange(first, first + length, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)
