"""A reward model's folder by the usual recipe: the folder's own chat template, tokenizer and logit give what assent
reads, whatever the template writes behind an answer and whatever the tokenizer pads with."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from assent.config import ModelConfig
from assent.data.chat import Chat
from assent.data.records import Message
from assent.data.tree import collate
from assent.models.heads import NO_PAD, load_score_model, save_reward_model, usage_of
from assent.models.init import CHAT_TEMPLATE
from assent.models.loading import load_tokenizer, quiet_transformers
from assent.models.policy import ScoreModel
from assent.models.recipe import (
    PROBES,
    Usage,
    closed_template,
    differing_scores,
    differing_tokens,
    original_template,
    others_scores,
    probes,
    rendered,
    safe_pad,
)

quiet_transformers()

CHATML = """\
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
LLAMA3 = """\
{{- bos_token -}}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""
GEMMA = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{%- set lead = messages[0]['content'] + '\\n\\n' -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set lead = '' -%}{%- endif -%}
{%- for m in messages -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (lead if loop.first else '') -}}
{{- m.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""
MISTRAL = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}{{- ' ' + m.content + eos_token -}}
{%- else -%}{{- '[INST] ' + m.content + ' [/INST]' -}}{%- endif -%}
{%- endfor -%}"""
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
BARE = """\
{%- for m in messages -%}{{- m.role + ':\\n' + m.content + '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'assistant:\\n' -}}{%- endif -%}"""
MACRO = """\
{%- macro turn(m) -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' -}}{%- endmacro -%}
{%- set ns = namespace(count=0) -%}
{%- for m in messages -%}{%- set ns.count = ns.count + 1 -%}{{- turn(m) + '\\n' -}}{%- endfor -%}
{%- if ns.count > 9 -%}{{- raise_exception('too long') -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- else -%}{{- '<|im_start|>\\n' -}}{%- endif -%}"""

HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<start_of_turn>", "<end_of_turn>")
TEMPLATES: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "chatml": (CHATML, (), {}),
    "own": (CHAT_TEMPLATE, (), {}),
    "llama3": (LLAMA3, HEADERS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "gemma": (GEMMA, TURNS, {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "mistral": (MISTRAL, (), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}),
    "zephyr": (ZEPHYR, (), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}),
    "bare": (BARE, (), {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
    "macro": (MACRO, (), {}),
}


def with_template(base, template: str | None, specials=(), names=None):
    tokenizer = copy.deepcopy(base)
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials), **(names or {})})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def scorers(tiny_model_dir: Path, tokenizer):
    """A reward model that answers far from 0, with more embeddings than any of the tokenizers has tokens."""

    def make(rank: int = 0) -> ScoreModel:
        config = ModelConfig(str(tiny_model_dir), precision="fp32")
        scorer = load_score_model(config, tokenizer, max_length=256, seed=1)
        scorer.model.resize_token_embeddings(420)
        with torch.no_grad():
            scorer.head.weight.mul_(40)
        return scorer.eval()

    return make


def ours(scorer: ScoreModel, chat: Chat) -> torch.Tensor:
    batch = collate([chat.tree(example, 256) for example in probes(chat, 256).values()])
    with torch.no_grad():
        return scorer(batch, batch.last)


# ---- the template


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_usual_recipe_gives_our_scores(name: str, tokenizer, scorers, tmp_path: Path) -> None:
    """transformers alone, one answer at a time and padded on either side."""
    template, specials, names = TEMPLATES[name]
    chat = Chat(with_template(tokenizer, template, specials, names))
    examples = probes(chat, 256)
    assert {"one turn", "several turns"} <= set(examples)
    scorer = scorers()
    save_reward_model(scorer, chat, tmp_path)
    usage = usage_of(scorer.plain, chat, tmp_path, ModelConfig(str(tmp_path)))
    assert usage == Usage(own=False, head="score.weight", pads=True)
    assert differing_tokens(tmp_path, chat, examples, 256) == []
    want = ours(scorer, chat)
    theirs = others_scores(tmp_path, usage, list(examples.values()))
    assert set(theirs) == {"none", "right", "left"} and want.std() > 0.1
    for side, scores in theirs.items():
        torch.testing.assert_close(scores, want, atol=2e-4, rtol=0, msg=side)


def test_without_the_closed_template_it_is_another_score(tokenizer, scorers, tmp_path: Path) -> None:
    """What the check says of a folder whose template writes a line break behind the end token."""
    chat = Chat(with_template(tokenizer, CHATML))
    scorer = scorers()
    save_reward_model(scorer, chat, tmp_path)
    usage = usage_of(scorer.plain, chat, tmp_path)
    examples = probes(chat, 256)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert differing_tokens(tmp_path, chat, examples, 256) == list(examples)
    gaps = differing_scores(others_scores(tmp_path, usage, list(examples.values())), ours(scorer, chat))
    assert min(gaps.values()) > 0.05 and set(gaps) == {"none", "right", "left"}


def test_what_the_recipe_cannot_give_is_said(tokenizer, scorers, tmp_path: Path) -> None:
    """Where a tokenizer joins the end of the prompt to the answer, the two are not one text."""
    template, specials, names = TEMPLATES["bare"]
    joined = template.replace(":\\n", ": ")
    chat = Chat(with_template(tokenizer, joined, specials, names))
    scorer = scorers()
    save_reward_model(scorer, chat, tmp_path)
    usage = usage_of(scorer.plain, chat, tmp_path, ModelConfig(str(tmp_path)))
    assert "its chat template gives other tokens than assent reads (one turn)" in usage.notes
    assert any("padded on the right" in note for note in usage.notes)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_closed_template_changes_ends_alone(name: str, tokenizer) -> None:
    """Prompts are rendered as before, and the template can be taken out again."""
    template, specials, names = TEMPLATES[name]
    base = with_template(tokenizer, template, specials, names)
    closed = closed_template(Chat(base))
    assert original_template(closed) == template
    again = with_template(base, closed)
    for example in probes(Chat(base), 256).values():
        chat = [{"role": m.role, "content": m.content} for m in example.prompt]
        for options in ({"add_generation_prompt": True}, {}):
            texts = [t.apply_chat_template(chat, tokenize=False, **options) for t in (base, again)]
            assert texts[0] == texts[1]
        (ids,) = rendered(again, [example])["input_ids"]
        assert int(ids[-1]) in Chat(base).eos_ids


PUBLIC = {
    "qwen3": "<|im_end|>",
    "qwen3_6": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "llama3_2": "<|eot_id|>",
    "phi3": "<|end|>",
    "cohere2": "<|END_OF_TURN_TOKEN|>",
    "glm4moe": "<|endoftext|>",
    "gptoss": "<|return|>",
    "lfm2": "<|im_end|>",
}
MARK = re.compile(r"<\|[^<>|]*\|>|<[a-z]+_of_[a-z]+>|<\|turn>|<turn\|>")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_templates_by_the_usual_recipe(name: str, tokenizer) -> None:
    """The ids of the closed template are those that assent reads, whatever the original writes behind the answer."""
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    specials = sorted({*MARK.findall(template), PUBLIC[name]})
    base = with_template(tokenizer, template, specials, {"bos_token": "<bos>", "eos_token": PUBLIC[name]})
    chat = Chat(base)
    examples = list(probes(chat, 4096).values())
    assert len(examples) == len(PROBES)
    theirs = rendered(with_template(base, closed_template(chat)), examples)["input_ids"]
    for example, its in zip(examples, theirs, strict=True):
        tree = chat.tree(example, 4096)
        assert list(its) == [*tree.prompt.tolist(), *tree.branches[0].ids.tolist()]


def test_templates_that_end_well_are_kept(tokenizer) -> None:
    for name in ("llama3", "mistral"):
        template, specials, names = TEMPLATES[name]
        assert closed_template(Chat(with_template(tokenizer, template, specials, names))) == template


def test_a_tokenizer_without_a_template_gets_the_plain_one(tokenizer, scorers, tmp_path: Path) -> None:
    chat = Chat(with_template(tokenizer, None))
    scorer = scorers()
    save_reward_model(scorer, chat, tmp_path)
    usage = usage_of(scorer.plain, chat, tmp_path, ModelConfig(str(tmp_path)))
    assert usage.notes == () and list(probes(chat, 256)) == ["one turn"]
    again = Chat(load_tokenizer(ModelConfig(str(tmp_path))))
    assert chat.speaks_like(again) and again.speaks_like(chat)


@pytest.mark.parametrize("name", TEMPLATES)
def test_assent_reads_the_folder_as_it_reads_the_policy(name: str, tokenizer, scorers, tmp_path: Path) -> None:
    """So that sampled tokens are scored themselves, and never turned to text and back."""
    template, specials, names = TEMPLATES[name]
    chat = Chat(with_template(tokenizer, template, specials, names))
    save_reward_model(scorers(), chat, tmp_path)
    again = Chat(load_tokenizer(ModelConfig(str(tmp_path))))
    assert chat.speaks_like(again) and again.speaks_like(chat)
    messages = (Message("user", "Hi?"),)
    assert again.prompt_ids(messages).tolist() == chat.prompt_ids(messages).tolist()


# ---- padding


@pytest.mark.parametrize(
    ("specials", "names", "want"),
    [
        ((), {"pad_token": "<|pad|>"}, "<|pad|>"),
        ((), {"pad_token": "<|im_end|>"}, "<|pad|>"),
        (("<|reserved_1|>", "<|fim_pad|>"), {"pad_token": "<|im_end|>"}, "<|pad|>"),
    ],
)
def test_pads_end_no_answer(specials, names, want: str, tokenizer) -> None:
    chat = Chat(with_template(tokenizer, CHATML, specials, names))
    assert safe_pad(chat, 420) == want


def bare_tokenizer(**names: str):
    """Few special tokens, as base models have them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=sorted(set(names.values())), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["hello there"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


@pytest.mark.parametrize(
    ("names", "want"),
    [
        ({"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}, "<unk>"),  # Llama 2
        ({"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "pad_token": "</s>"}, "<unk>"),
        ({"eos_token": "</s>", "bos_token": "<s>"}, "<s>"),
        ({"eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>"}, None),  # GPT-2
        ({"eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>", "pad_token": "</s>"}, None),
    ],
)
def test_pads_of_base_tokenizers(names, want, scorers, tmp_path: Path) -> None:
    base = bare_tokenizer(**names)
    base.chat_template = BARE
    chat = Chat(base)
    assert safe_pad(chat, 420) == want
    scorer = scorers()
    save_reward_model(scorer, chat, tmp_path)
    usage = usage_of(scorer.plain, chat, tmp_path, ModelConfig(str(tmp_path)))
    assert usage.pads == (want is not None) and usage.notes == (() if want else (NO_PAD,))
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.pad_token == want and scorer.plain.config.pad_token_id == again.pad_token_id
    theirs = others_scores(tmp_path, usage, list(probes(chat, 256).values()))
    assert len(theirs) == (3 if want else 1)
    for scores in theirs.values():
        torch.testing.assert_close(scores, ours(scorer, chat), atol=2e-4, rtol=0)


def test_a_pad_outside_of_the_embedding_is_not_taken(tokenizer) -> None:
    chat = Chat(with_template(tokenizer, CHATML, ("<|reserved_1|>",), {"pad_token": "<|reserved_1|>"}))
    assert safe_pad(chat, chat.tokenizer.convert_tokens_to_ids("<|reserved_1|>")) == "<|pad|>"
