"""What models say that texts are about: hidden states, averaged over the tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from assent.config import ModelConfig
from assent.errors import ModelError
from assent.models.folders import longest
from assent.models.loading import load_folder, load_tokenizer, open_model, quiet_transformers, resolve_precision
from assent.models.sources import ask_hub, resolve
from assent.models.stored import configuration
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)

MOST = 512
"""Tokens of a text that are read."""
TOKENS = 16_384
"""Tokens in one forward pass, with padding."""


class Embedder:
    """A frozen encoder or decoder. Raises ModelError, in the words of `flag`, for what is no model of text."""

    def __init__(self, path: str, device: torch.device, flag: str, precision: str, trust: bool) -> None:
        quiet_transformers()
        try:
            self._model, self._tokenizer = _opened(ModelConfig(path, trust_remote_code=trust))
        except ModelError as error:
            raise ModelError(f"{flag} {path}: {error}") from None
        self._model.to(device).eval().requires_grad_(False)
        self._device, self._bf16 = device, resolve_precision(precision, device) == "bf16"
        limits = (MOST, longest(self._model.config) or MOST, self._tokenizer.model_max_length)
        self._limit = int(min(limits)) - (2 if self._model.config.model_type in ("roberta", "xlm-roberta") else 0)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """[N, H] float32 of length one. What is longer than the model reads, or than `MOST` tokens, is cut there, which
        is said."""
        ids = [self._ids(texts[start : start + 1024]) for start in range(0, len(texts), 1024)]
        rows = [row for part in ids for row in part]
        if cut := sum(len(row) == self._limit for row in rows):
            log.info(f"topics: {cut:,} of {len(rows):,} prompts are read up to their first {self._limit} tokens")
        order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
        found: np.ndarray | None = None
        done = 0
        with ProgressDisplay(total=len(rows), label="embed") as progress:
            while done < len(order):
                width = max(len(rows[order[done]]), 1)
                batch = order[done : done + max(1, TOKENS // width)]
                made = self._forward([rows[place] for place in batch], width)
                found = np.zeros((len(rows), made.shape[1]), np.float32) if found is None else found
                found[batch] = made
                done += len(batch)
                progress.update(done, f"{done:,} prompts")
        assert found is not None, "there are texts"
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        made = self._tokenizer(list(texts), truncation=True, max_length=self._limit, verbose=False)
        return [list(row) for row in made["input_ids"]]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask.unsqueeze(-1).float()
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        if not bool(torch.isfinite(mean).all()):
            raise ModelError(f"--topics.model: {self._model.config.model_type} gives numbers that are not finite.")
        return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()


def _opened(source: ModelConfig) -> tuple[Any, Any]:
    """The part of a model that gives hidden states, in fp32, and its tokenizer."""
    place = resolve(source.path, source.revision)
    ask_hub(place)
    config = configuration(place.base, place.revision, source.trust_remote_code)
    if any("ForCausalLM" in kind for kind in getattr(config, "architectures", None) or ()):
        model, _ = load_folder("model", source.path, lambda: open_model(AutoModelForCausalLM, source, config=config))
        return model.base_model, load_tokenizer(source)
    if not place.is_plain:
        raise ModelError("adapters and checkpoints are merged into causal language models only: assent export first.")
    shared: dict[str, Any] = {"revision": place.revision, "trust_remote_code": source.trust_remote_code}
    tokenizer = load_folder("tokenizer", source.path, lambda: AutoTokenizer.from_pretrained(place.base, **shared))

    def load() -> Any:
        return AutoModel.from_pretrained(
            place.base,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **shared,
        )

    model, info = load_folder("model", source.path, load)
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise ModelError(f"it lacks weights ({', '.join(missing[:3])}), which would be random.")
    return (model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model), tokenizer
