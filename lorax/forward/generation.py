"""Text that is generated: by causal models, which continue a prompt, and by encoder-decoders, which answer it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorax.forward.batch import Encoded, batch_of, grid, labels_at, pad_causal, pad_id
from lorax.forward.classification import masked
from lorax.forward.decode import Stop, decode
from lorax.forward.prefix_tree import lay_out, size, takes_masks
from lorax.forward.prompts import announce, causal_pair, ended, prompt_text
from lorax.forward.readout import Readout, caches_by_position
from lorax.forward.recorders import CudaGraphs, Recorder
from lorax.forward.sizes import Size
from lorax.forward.static_decode import StaticDecoder
from lorax.forward.text import TextModality
from lorax.models.modality import Batch, Prediction, by_lane, row_means

if TYPE_CHECKING:
    from lorax.forward.prompts import Pair, Turns
    from lorax.models.modality import ActiveLanes
    from lorax.models.registry import Loaded
    from lorax.tasks.base import Task


class GeneratedText(TextModality):
    """Greedy completions, scored as texts; the loss is that of the reference answer and its end token."""

    task_kinds = ("generation",)

    def __init__(self, loaded: Loaded):
        super().__init__(loaded)
        self.readout = Readout(loaded.model)

    def encode(self, task: Task, split: str, shots: bool = False) -> list[Encoded]:
        """Encode one split of a task; see `TextModality.encode`."""
        announce(self.loaded.tokenizer, task.system)
        return super().encode(task, split, shots)

    def open(self) -> AbstractContextManager[Readout]:
        """Have the model compute logits only where labels are predicted."""
        return self.readout

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits at the labels, (N, V)."""
        return self.readout.run(batch)

    def label_losses(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of each label, (N,); of many labels some at a time."""
        return self.readout.losses(batch)

    def stop(self, task: Task) -> Stop:
        """Return where completions end."""
        return Stop(end_tokens(self.loaded), task.max_new_tokens)

    def answers(self, completions: Sequence[list[int]], losses: Sequence[float], lanes: int) -> list[list[Prediction]]:
        """Return, for each lane, its completions as texts with their losses."""
        texts = map(self.text, completions)
        return by_lane([Prediction(text, loss) for text, loss in zip(texts, losses, strict=True)], lanes)

    def text(self, completion: list[int]) -> str:
        """Return a completion as it is scored."""
        return self.loaded.tokenizer.decode(completion, skip_special_tokens=True).strip()

    def generate(self, ids: Tensor, mask: Tensor, start: int, stop: Stop) -> list[list[int]]:
        """Return greedy completions by transformers' own `generate`, without their end tokens.

        Args:
            ids: (rows, T) padded prompts.
            mask: (rows, T) 1 for tokens, 0 for padding.
            start: tokens of its output that come before the completion.
            stop: where completions end.
        """
        output = self.loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=stop.max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(stop.tokens),
            pad_token_id=pad_id(self.loaded.tokenizer),
        )
        return [stop.cut(tokens) for tokens in output[:, start:].tolist()]


class CausalText(GeneratedText):
    """The answer continues the prompt; the loss is on the answer alone.

    Args:
        loaded: a causal language model.
        verify: see `decode`; False decodes every token.
        share: see `decode`; False computes every row from its first token.
        recorder: records the pass of a token, in fixed buffers; None: CUDA graphs on a GPU, else the batch shrinks as
            rows finish.
    """

    def __init__(self, loaded: Loaded, *, verify: bool = True, share: bool = True, recorder: Recorder | None = None):
        super().__init__(loaded)
        self.verify, self.share, self.recorder = verify, share, recorder
        self._static: StaticDecoder | None = None

    @contextmanager
    def open(self) -> Iterator[Readout]:
        """Have logits computed where labels are predicted; keep what decoding records until the block ends."""
        try:
            with self.readout:
                yield self.readout
        finally:
            self._static = None

    def _decoder(self) -> StaticDecoder | None:
        """Return what decodes in fixed buffers, where the model allows it and it pays."""
        if self.recorder is None and self.device.type == "cuda":
            self.recorder = CudaGraphs(self.device)
        if self.recorder is None or not takes_masks(self.loaded.model):
            return None
        if self._static is None:
            self._static = StaticDecoder(self.readout, self.recorder)
        return self._static

    def tokenise(self, system: str | None, turns: Turns, texts: Sequence[tuple[str, str]]) -> Iterable[Pair]:
        """Return prompts and answers; an answer continues exactly the prompt that generation starts from."""
        return [causal_pair(self.loaded.tokenizer, system, turns, prompt, answer) for prompt, answer in texts]

    def length(self, ids: list[int], labels: list[int]) -> int:
        """Return the tokens of prompt and answer."""
        return len(ids) + len(labels)

    def collate(
        self, rows: Sequence[Encoded], lanes: int = 1, *, share: bool = True, single_pass: bool = False
    ) -> Batch:
        """Return the rows, where that pays with their common beginning once for each lane (`prefix_tree.lay_out`)."""
        return lay_out(rows, self.loaded, lanes, share and self.share, single_pass)

    def pad(self, rows: Sequence[Encoded], lanes: int = 1, size: Size | None = None) -> Batch:
        """Return a padded row for each prompt with its answer."""
        return pad_causal(rows, pad_id(self.loaded.tokenizer), 0, lanes, self.device, size)

    def width(self, row: Encoded) -> int:
        """Return the tokens of prompt and answer but the last, which is not read."""
        return len(row) - 1

    def predict(self, task: Task, rows: Sequence[Encoded], lanes: int, active: ActiveLanes) -> list[list[Prediction]]:
        """Decode greedily: with reference answers checked first where the model's cache allows it."""
        pad, stop = pad_id(self.loaded.tokenizer), self.stop(task)
        if caches_by_position(self.loaded.model):
            static = self._decoder()
            completions, losses = decode(self.readout, rows, pad, lanes, active, stop, self.verify, self.share, static)
            return self.answers(completions, losses, lanes)
        batch = self.collate([*rows] * lanes, lanes, share=False)
        # Padding is on the left here: `generate` goes on from the last column.
        width = max(len(row.ids) for row in rows)
        padding = [width - len(row.ids) for row in rows]
        ids = torch.tensor([[pad] * n + row.ids for n, row in zip(padding, rows, strict=True)] * lanes)
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding] * lanes)
        with active(range(lanes)):
            losses = row_means(self.losses(self.forward(batch), batch), batch.counts)
            completions = self.generate(ids.to(self.device), mask.to(self.device), width, stop)
        return self.answers(completions, losses, lanes)

    def tokens(self, rows: Sequence[Encoded]) -> int:
        """Return how many tokens, padding included, the model runs for rows of one lane in a single pass."""
        return size(rows, self.loaded.model)


class Seq2SeqText(GeneratedText):
    """The encoder reads the prompt, the decoder writes the answer."""

    def tokenise(self, system: str | None, turns: Turns, texts: Sequence[tuple[str, str]]) -> Iterable[Pair]:
        """Return prompts (plain where the task has neither system text nor shots) and answers."""
        tokenizer = self.loaded.tokenizer
        for text, answer in texts:
            prompt = prompt_text(tokenizer, system, turns, text) if system or turns else text
            yield tokenizer(prompt)["input_ids"], ended(tokenizer, tokenizer(text_target=answer)["input_ids"])

    def collate(
        self, rows: Sequence[Encoded], lanes: int = 1, *, share: bool = True, single_pass: bool = False
    ) -> Batch:
        """Return a padded row for each prompt and each answer."""
        return self.pad(rows)

    def pad(self, rows: Sequence[Encoded], lanes: int = 1, size: Size | None = None) -> Batch:
        """Return a padded row for each prompt and each answer."""
        start = self.loaded.model.config.decoder_start_token_id
        return pad_seq2seq(rows, pad_id(self.loaded.tokenizer), start, self.device, size)

    def padded(self, rows: Sequence[Encoded]) -> int:
        """Return the tokens of both grids."""
        return len(rows) * (max(len(row.ids) for row in rows) + max(len(row.labels) for row in rows))

    def predict(self, task: Task, rows: Sequence[Encoded], lanes: int, active: ActiveLanes) -> list[list[Prediction]]:
        """Decode with transformers' own `generate`; losses in a pass of their own.

        Prompts stay padded on the right: on the left, absolute positions (BART) would count the padding.
        """
        batch = self.collate([*rows] * lanes, lanes)
        with active(range(lanes)):
            losses = row_means(self.losses(self.forward(batch), batch), batch.counts)
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
            completions = self.generate(ids, mask, 1, self.stop(task))
        return self.answers(completions, losses, lanes)


def pad_seq2seq(
    rows: Sequence[Encoded], pad: int, start: int, device: torch.device | str = "cpu", size: Size | None = None
) -> Batch:
    """Return two grids, of prompts with their attention mask and of the decoder's inputs.

    Args:
        rows: the examples; those of a lane next to each other, equally many each.
        pad: the token to pad with.
        start: the token that the decoder starts from.
        device: where the batch goes.
        size: the shape to fill; None: as large as the rows need.
    """
    answers = [[start, *row.labels[:-1]] for row in rows]
    decoder = grid(answers, pad, size and replace(size, tokens=size.answer))
    labels = labels_at(rows, [0] * len(rows), decoder.shape[1], size)
    inputs = masked([row.ids for row in rows], pad, size)
    return batch_of({**inputs, "decoder_input_ids": decoder, **labels}, [*map(len, answers)], device, size)


def end_tokens(loaded: Loaded) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's and those of the model's generation settings."""
    settings = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    tokens = [loaded.tokenizer.eos_token_id, *(settings if isinstance(settings, list) else [settings])]
    return frozenset(int(token) for token in tokens if token is not None)
