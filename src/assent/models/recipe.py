"""A reward model's folder as others read it: render the conversation with the folder's chat template, tokenise, take
the model's logit. Others read it at the last token that is no padding; assent at the token that ends the answer. What
is written makes the two the same, and what is written is loaded again and compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response, RowError
from assent.models.reward_head import SCALAR, HeadRule

START = "{#- assent: the reward is read at the end of the answer, so nothing is written behind it -#}"
OPEN, CLOSE = START + "{%+ set rendered +%}", "{%+ endset +%}"
FINISH = (
    "{{{{ rendered[:rendered|length - {cut}] ~ {end} if not add_generation_prompt and messages[-1]['role'] == "
    "'assistant' and rendered.endswith({written}) else rendered }}}}"
)
PROBES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("one turn", (("user", "What is 2 + 3?"), ("assistant", "It is 5."))),
    ("several turns", (("user", "Hi."), ("assistant", "Hello!"), ("user", "Name a fruit."), ("assistant", "Apple."))),
    ("a system prompt", (("system", "Be brief."), ("user", "Name a colour."), ("assistant", "Red."))),
)
TOLERANCE = 1e-3
"""Scores differ where they do so by more than this, in units of their size or 1."""


# ---- the template


def ending(chat: Chat) -> tuple[str, str]:
    """What the chat template writes behind an answer, and what assent reads of it: up to the token that ends it, or
    with that token where the template writes it only before a next turn, or never."""
    tokenizer, answer = chat.tokenizer, "Certainly."
    example = Example((Message("user", "Question?"),), (Response((Message("assistant", answer),)),))
    messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, chat_template=chat.template, tokenize=False)
    start = text.rindex(answer) + len(answer)
    written = text[start:]
    names = [tokenizer.convert_ids_to_tokens(index) for index in chat.eos_ids]
    found = sorted((written.find(name), name) for name in names if name in written)
    ends = [written[:position] + name for position, name in found]
    ends += [written.rstrip() + name for name in [tokenizer.eos_token, *sorted(names)] if name is not None]
    try:
        tree = chat.tree(example, 1 << 20)
    except RowError:
        return written, ends[0]
    own = [*tree.prompt.tolist(), *tree.branches[0].ids.tolist()]
    same = [end for end in ends if tokenizer(text[:start] + end, add_special_tokens=False)["input_ids"] == own]
    return written, (same or ends)[0]


def closed_template(chat: Chat) -> str:
    """The chat template, ending at the end of the answer where a conversation ends with one."""
    template = chat.template
    written, end = ending(chat)
    if written == end:
        return template
    body = template.removesuffix("\n")
    newline = template[len(body) :]  # Jinja drops it at the very end of a template, and only there
    return OPEN + body + CLOSE + FINISH.format(cut=len(written), end=ascii(end), written=ascii(written)) + newline


def original_template(template: Any) -> Any:
    """The inverse of `closed_template`; other templates as they are."""
    if not isinstance(template, str) or not template.startswith(OPEN):
        return template
    return template[len(OPEN) : template.rindex(CLOSE)] + ("\n" if template.endswith("\n") else "")


# ---- padding


def safe_pad(chat: Chat, rows: int) -> str | None:
    """A token to pad with: one that no answer ends with, since others take the last token that is no padding. The
    tokenizer's own where it is such, else another special token, if it has one among the `rows` of the embedding."""
    tokenizer = chat.tokenizer
    usable = {
        index: token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index < rows and index not in chat.eos_ids
    }
    own = tokenizer.pad_token_id
    if own is not None and own < rows and own not in chat.eos_ids:
        return tokenizer.pad_token
    template = chat.template

    def order(index: int) -> tuple[int, int]:
        name = usable[index].lower()
        kinds = ("pad" in name, "reserved" in name or "unused" in name, usable[index] == tokenizer.unk_token)
        return (kinds.index(True) if True in kinds else len(kinds), index)

    unwritten = [index for index in usable if usable[index] not in template and index != tokenizer.bos_token_id]
    if unwritten:
        return usable[min(unwritten, key=order)]
    return tokenizer.bos_token if tokenizer.bos_token_id in usable else None


def reward_tokenizer(chat: Chat, rows: int) -> PreTrainedTokenizerBase:
    """The tokenizer as a reward model's folder holds it: closed template, safe padding, on the right (models that count
    positions from the left edge are exact so)."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = closed_template(chat)
    tokenizer.pad_token = safe_pad(chat, rows)
    tokenizer.padding_side = "right"
    return tokenizer


# ---- what others get


@dataclass(frozen=True, slots=True)
class Usage:
    """How a written folder is read elsewhere: with `own`, by the decoder and the tensor `head`, since transformers has
    no class for it; `pads` says whether several answers can be padded; `notes` tell what is not exact; `rule` makes the
    reward of the outputs."""

    own: bool
    head: str
    pads: bool
    notes: tuple[str, ...] = ()
    rule: HeadRule = SCALAR


def probes(chat: Chat, max_length: int) -> dict[str, Example]:
    """Conversations to compare, those that the chat template can write."""
    found = {}
    for name, turns in PROBES:
        *before, (role, answer) = turns
        example = Example(tuple(Message(*turn) for turn in before), (Response((Message(role, answer),)),))
        try:
            chat.tree(example, max_length)
        except RowError:
            continue
        found[name] = example
    return found


def rendered(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], **options: Any) -> Any:
    """Their ids by the usual recipe."""
    chats = [
        [{"role": m.role, "content": m.content} for m in (*example.prompt, *example.responses[0].messages)]
        for example in examples
    ]
    return tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True, **options)


def differing_tokens(folder: Path, chat: Chat, examples: Mapping[str, Example], max_length: int) -> list[str]:
    """The names of those whose ids are others by the folder's chat template than assent reads."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = rendered(tokenizer, list(examples.values()))["input_ids"]
    trees = [chat.tree(example, max_length) for example in examples.values()]
    ours = [[*tree.prompt.tolist(), *tree.branches[0].ids.tolist()] for tree in trees]
    return [name for name, its, own in zip(examples, theirs, ours, strict=True) if list(its) != own]


@torch.no_grad()
def others_scores(folder: Path, usage: Usage, examples: Sequence[Example], **options: Any) -> dict[str, Tensor]:
    """The outputs [S, K] that transformers alone gives them, by the side that is padded ("none": one at a time)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = AutoModel if usage.own else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options).eval()
    head = tensor_of(folder, usage.head) if usage.own else None

    def scores(rows: Sequence[Example], **padding: Any) -> Tensor:
        inputs = rendered(tokenizer, rows, return_tensors="pt", **padding)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if head is None:
            return model(input_ids=ids, attention_mask=mask).logits.float()
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return states[torch.arange(len(last)), last] @ head.float().T

    found = {"none": torch.cat([scores([example]) for example in examples])}
    for side in ("right", "left") if usage.pads else ():
        tokenizer.padding_side = side
        found[side] = scores(examples, padding=True)
    return found


def tensor_of(folder: Path, name: str) -> Tensor:
    """A weight of a model folder, by its name."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            if name in weights.keys():
                return weights.get_tensor(name)
    raise KeyError(name)


def differing_scores(theirs: Mapping[str, Tensor], ours: Tensor) -> dict[str, float]:
    """By side, the largest difference where it is one."""
    worst = {side: float((scores - ours).abs().max()) for side, scores in theirs.items()}
    size = max(1.0, float(ours.abs().max()))
    return {side: gap for side, gap in worst.items() if not gap <= TOLERANCE * size}
