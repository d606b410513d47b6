"""Text classifiers that others have trained: folders or hub ids that transformers loads as
AutoModelForSequenceClassification, and their probabilities for texts of any length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assent.distributed import World, gathered
from assent.errors import ModelError
from assent.models.folders import longest
from assent.models.loading import load_folder, quiet_transformers
from assent.models.sources import ask_hub, resolve
from assent.models.stored import configuration

HEAD = "ForSequenceClassification"
MOST = 8192
"""Tokens of the longest window, where a model would read more or sets no limit."""
PORTION = 2048
"""Texts that are split into windows and read together: what is in memory at once."""
OVERLAP = 4
"""A window begins so that one in four of its tokens were in the one before."""

Text = tuple[str, ...]
"""A text by itself, or two that are read as one pair."""


class Classifier:
    """A frozen classifier. `labels` are its K labels in the order of its outputs. `flag` begins every message.

    A text that is longer than it reads is cut into overlapping windows, each with the special tokens of a whole one; of
    a pair it is the first text that is cut. Probabilities are softmax over the labels, or, where its configuration says
    multi_label_classification or there is one label, the sigmoid of each: transformers' own rule.

    fp32 unless `precision` is bf16: what it says is compared with thresholds."""

    def __init__(
        self,
        flag: str,
        path: str,
        *,
        world: World,
        precision: str = "fp32",
        micro_tokens: int = 4096,
        trust_remote_code: bool = False,
    ) -> None:
        """Raises ModelError for what is no classifier, or lacks a part of its head."""
        quiet_transformers()
        self.who, self.world, self.micro_tokens = f"{flag} {path}", world, micro_tokens
        self._bf16 = precision == "bf16"
        try:
            self.model, self.tokenizer = _loaded(path, trust_remote_code)
        except ModelError as error:
            raise ModelError(f"{flag} {_without(str(error), path)}") from None
        self.model.to(world.device)
        config = self.model.config
        self.labels = _labels(config)
        self.single = config.num_labels > 1 and config.problem_type != "multi_label_classification"
        self._pad = config.get_text_config().pad_token_id
        self.limit = _limit(self.model, self.tokenizer)
        self._special = [self.tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)]
        if self._room(True) < 2 * OVERLAP:
            raise ModelError(f"{self.who} reads {self.limit} tokens, too few for a text.")

    def _room(self, pair: bool) -> int:
        return self.limit - self._special[pair]

    @property
    def longest_second(self) -> int:
        """Most tokens of a pair's second text: half of what there is room for."""
        return self._room(True) // 2

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones."""
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    def probabilities(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """[W, K] float64 for each text: the probabilities of its labels in each of its W windows. All texts are
        single, or all are pairs whose second has at most `longest_second` tokens. The ranks share the work, each with
        batches that do not depend on their number; every rank must call it, and gets all. Raises ModelError where the
        model gives no numbers."""
        found: list[np.ndarray] = []
        for start in range(0, len(texts), PORTION):
            found += self._portion(texts[start : start + PORTION])
        return found

    def _portion(self, texts: Sequence[Text]) -> list[np.ndarray]:
        windows, owner = self._windows(texts)
        batches = list(self._batches([len(ids) for ids, _ in windows]))
        mine = batches[self.world.rank :: self.world.size]
        made = gathered(lambda: [(batch, self._forward([windows[place] for place in batch])) for batch in mine])
        rows = np.zeros((len(windows), len(self.labels)))
        for rank in made:
            for batch, numbers in rank:
                rows[batch] = numbers
        return [rows[places] for places in _by_owner(owner, len(texts))]

    def _windows(self, texts: Sequence[Text]) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        """Ids and token types of every window, and which text each is of. What looks like a special token in a text is
        text."""
        firsts = [text[0] for text in texts]
        seconds = [text[1] for text in texts] if len(texts[0]) == 2 else None
        made = self.tokenizer(
            firsts,
            seconds,
            truncation="longest_first" if seconds is None else "only_first",
            max_length=self.limit,
            stride=self._room(seconds is not None) // OVERLAP // (1 if seconds is None else 2),
            return_overflowing_tokens=True,
            return_token_type_ids=True,
            split_special_tokens=True,
        )
        windows = list(zip(made["input_ids"], made["token_type_ids"], strict=True))
        return windows, list(made["overflow_to_sample_mapping"])

    def _batches(self, sizes: Sequence[int]) -> Iterator[list[int]]:
        """Places of windows of about the same length, at most `micro_tokens` tokens with the padding; one by one where
        the model knows no padding."""
        batch: list[int] = []
        for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
            if batch and (self._pad is None or (len(batch) + 1) * sizes[batch[0]] > self.micro_tokens):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    @torch.inference_mode()
    def _forward(self, windows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
        width = max(len(ids) for ids, _ in windows)
        asked = {"input_ids": self._padded([ids for ids, _ in windows], width, self._pad or 0)}
        asked["attention_mask"] = self._padded([[1] * len(ids) for ids, _ in windows], width, 0)
        if "token_type_ids" in self.tokenizer.model_input_names:
            asked["token_type_ids"] = self._padded([types for _, types in windows], width, 0)
        device = self.world.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.model(**asked).logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(f"{self.who}: it gives numbers that are not finite.")
        chances = logits.softmax(-1) if self.single else logits.sigmoid()
        return chances.double().cpu().numpy()

    def _padded(self, rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=self.world.device)


def _loaded(path: str, trust: bool) -> tuple[Any, Any]:
    """The model in fp32, and its tokenizer."""
    source = resolve(path)
    ask_hub(source)
    if not source.is_plain:
        raise ModelError(f"{path} is not a whole model by itself. Make one: assent export {path} --out FOLDER")
    base, shared = source.base, {"revision": source.revision, "trust_remote_code": trust}
    config = configuration(base, source.revision, trust)
    kinds = getattr(config, "architectures", None) or ()
    if kinds and not any(HEAD in kind for kind in kinds):
        raise ModelError(f"{path} is no text classifier: config.json says {', '.join(kinds)}; expected a ...{HEAD}.")
    if config.problem_type == "regression":
        raise ModelError(f"{path} gives numbers (problem_type regression), not probabilities: a reward model.")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{path}: its weights are stored quantised. Give the folder with whole weights.")
    tokenizer = load_folder("tokenizer", path, lambda: AutoTokenizer.from_pretrained(base, **shared))
    if not tokenizer.is_fast:
        raise ModelError(f"{path}: its tokenizer has no fast version, which windows of long texts need.")
    tokenizer.truncation_side = "right"
    model, info = load_folder(
        "text classifier",
        path,
        lambda: AutoModelForSequenceClassification.from_pretrained(
            base, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **shared
        ),
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{path} lacks weights of its head ({', '.join(missing[:3])}), which would be random: it was never trained "
            "to classify, or is not whole."
        )
    return model.eval().requires_grad_(False), tokenizer


def _without(message: str, path: str) -> str:
    """The message, which names the path once."""
    return message if path in message else f"{path}: {message}"


def _labels(config: Any) -> tuple[str, ...]:
    names: Mapping[Any, str] = {int(number): str(name) for number, name in config.id2label.items()}
    return tuple(names.get(number, f"LABEL_{number}") for number in range(config.num_labels))


def _limit(model: nn.Module, tokenizer: Any) -> int:
    """The longest window in tokens: the least of what tokenizer, configuration and position embeddings allow. Those
    embeddings that keep a row for padding (RoBERTa and its kin) begin to count behind it."""
    limits = [MOST, tokenizer.model_max_length, longest(model.config) or math.inf]
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and name.endswith("position_embeddings") and part.padding_idx is not None:
            limits.append(part.num_embeddings - part.padding_idx - 1)
    return int(min(limits))


def _by_owner(owner: Sequence[int], count: int) -> list[list[int]]:
    """Places of the windows of each text."""
    places: list[list[int]] = [[] for _ in range(count)]
    for place, text in enumerate(owner):
        places[text].append(place)
    return places
