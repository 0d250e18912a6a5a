"""Forgetting: how much worse an adapted language model predicts text that is not of the task."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorax.diagnostics.layer_summary import rounded
from lorax.diagnostics.natural_text import Text, load_text
from lorax.errors import UserError
from lorax.forward.active import active
from lorax.forward.generation import CausalText
from lorax.forward.modality import modality_of
from lorax.forward.readout import Readout, autocast, device_of
from lorax.forward.text import limit, token_losses
from lorax.probing.cache import Cache
from lorax.probing.calibration_pass import evaluation_mode
from lorax.probing.fingerprint import key_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorax.adapters.baselines import FullModel
    from lorax.adapters.handle import Adapters
    from lorax.models.registry import Loaded

VERSION = 1  # of the windows and the mean; part of the cache key
WINDOW = 512
LOGITS = 2**26  # at most so many logits at once: a quarter of a GB in fp32


@torch.no_grad()
def forgetting(
    loaded: Loaded,
    adapters: Adapters | FullModel,
    text: Text | str | None = None,
    tokens: int = 50_000,
    *,
    window: int = WINDOW,
    autocast_dtype: str | None = None,
    cache: Cache | None = None,
) -> dict[str, Any] | None:
    """Return the change of token cross-entropy on natural text, adapted minus `adapters.disabled()`.

    The text is cut into windows of fixed length. Each is predicted on its own, after the tokenizer's begin token if
    it writes one. The mean is over all predicted tokens, exactly.

    Args:
        loaded: a model with adapters on it, in any mode; it is in evaluation mode meanwhile.
        adapters: those that are measured; in a pack, one run's.
        text: a `Text`, or what `load_text` takes; None is CPython's language reference.
        tokens: at least so many are predicted.
        window: tokens in a window, at most the model's context.
        autocast_dtype: dtype of the forward pass by autocast, or None.
        cache: keeps the base model's losses, which are the same for all arms on this model.

    Returns:
        change (nats per token; positive is forgetting), se (its standard error over windows), base,
        adapted, tokens, windows, window, source, digest (of the text). None unless the model is a causal
        language model.

    Raises:
        UserError: the text has fewer tokens than asked for.
    """
    if not isinstance(modality_of(loaded), CausalText):
        return None
    source = text if isinstance(text, Text) else load_text(text, characters=32 * tokens)
    rows, start = windows(loaded, source, tokens, window)
    losses = _Losses(loaded, rows, start, autocast_dtype)
    with evaluation_mode(loaded.model), active([adapters]):
        with adapters.disabled():
            base = losses.of_base(cache)
        new = losses.compute() if adapters.count_trainable() else base
    per_window = rows.shape[1] - start
    change = (new - base) / per_window
    return {
        "change": rounded(float(change.mean())),
        "se": rounded(float(change.std() / len(change) ** 0.5)) if len(change) > 1 else None,
        "base": rounded(float(base.mean()) / per_window),
        "adapted": rounded(float(new.mean()) / per_window),
        "tokens": len(rows) * per_window,
        "windows": len(rows),
        "window": rows.shape[1],
        "source": source.source,
        "digest": source.digest,
    }


def windows(loaded: Loaded, text: Text, tokens: int, window: int = WINDOW) -> tuple[Tensor, int]:
    """Return the text as (count, L) token ids, and how many leading ids of each row are not predicted.

    Every row is predicted without the rows before it. So its first token is context only: the tokenizer's begin
    token or, if it writes none, a token of the text.

    Raises:
        UserError: `tokens` or `window` too small, or the text too short.
    """
    if tokens < 1 or window < 2:
        raise UserError(f"forgetting tokens={tokens}, window={window}: at least 1 and 2")
    length = min(window, limit(loaded) or window)
    begin = _begin(loaded.tokenizer)
    body = length - len(begin)
    predicted = body if begin else body - 1
    needed = -(-tokens // predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a text longer than the model's context: it is cut below
        ids = loaded.tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < needed * body:
        raise UserError(f"forgetting on {text.source}: {len(ids)} tokens, {needed * body} are needed for {tokens}")
    grid = torch.tensor(ids[: needed * body]).view(needed, body)
    return torch.cat([torch.tensor(begin, dtype=torch.long).expand(needed, -1), grid], dim=1), 1


class _Losses:
    """Computes the summed cross-entropy of each window, (count,) float64, under the model as it is."""

    def __init__(self, loaded: Loaded, rows: Tensor, start: int, autocast_dtype: str | None) -> None:
        self.loaded, self.rows, self.start, self.autocast = loaded, rows, start, autocast_dtype

    def of_base(self, cache: Cache | None) -> Tensor:
        """Return the losses of the base model, from the cache if they were computed for these windows before."""
        weight = next(self.loaded.model.parameters())
        ids = hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()
        facts = [self.loaded.digest, self.loaded.attention, str(weight.dtype), weight.device.type, self.autocast]
        if cache is None:
            return self.compute()
        return cache.get(key_of("text loss", VERSION, ids, *facts), lambda: {"sums": self.compute()})["sums"]

    def compute(self) -> Tensor:
        """Return the losses."""
        device, width = device_of(self.loaded.model), self.rows.shape[1] - 1
        size = max(1, LOGITS // (width * self.loaded.model.config.get_text_config().vocab_size))
        sums = []
        with Readout(self.loaded.model) as readout, autocast(device, self.autocast):
            for part in self.rows.split(size):
                part = part.to(device)
                positions = torch.arange(len(part) * width, device=device)
                logits = readout({"input_ids": part[:, :-1]}, positions)
                losses = token_losses(logits, part[:, 1:].flatten()).view(len(part), width)
                sums.append(losses[:, self.start - 1 :].double().sum(dim=1).cpu())
        return torch.cat(sums)


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the begin token, if the tokenizer writes one by itself, else nothing."""
    begin = tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    return [begin] if begin is not None and ids[:1] == [begin] else []
