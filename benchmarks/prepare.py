"""Makes what both sides read: two random Llamas with an 8k byte-level BPE tokenizer trained on the data, a random
reward model for each, and the rows that every side can use, in one order.

    python -m benchmarks.prepare DATA_FOLDER OUT

OUT/<model>, OUT/<model>-reward     Hugging Face folders
OUT/old/...                         the same for transformers 4, which does not know the newer tokenizer classes
OUT/pairs.json                      rows of dpo_en_demo.json whose prompt leaves room for an answer, untouched
OUT/whole-pairs.json                those of them whose answers fit whole: TRL's reward trainer drops the others
OUT/scored-pairs.json               rows of dpo_en_demo.json that the models read whole: what is scored
OUT/labels.json                     rows of kto_en_demo.json whose prompt leaves room for an answer, untouched
OUT/prompts.json                    rows with short prompts, for rollouts
OUT/peer-....json                   the same rows as TRL wants them, in the order in which assent takes them; of the
                                    prompts as tokens (PPO) and as messages (peer-rollouts.json)
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.packing import order
from assent.data.records import Binary, Example, Message
from assent.data.tree import TokenTree
from assent.data.views import binary_view, pair_view, prompt_view
from assent.models.init import train_tokenizer
from assent.models.loading import quiet_transformers
from benchmarks.plan import ANSWERS, BATCH, CONTEXT, MAX_LENGTH, PROMPT_LIMIT, SEED

PAIRS, LABELS, DEMONSTRATIONS = "dpo_en_demo.json", "kto_en_demo.json", "alpaca_en_demo.json"
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "heads": 4, "kv_heads": 2},
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "heads": 8, "kv_heads": 4},
}
VOCABULARY = 8192
LONG = 1 << 20  # no limit


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    quiet_transformers()
    examples = load_examples(data / PAIRS).examples
    tokenizer = train_tokenizer(_texts([*examples, *load_examples(data / DEMONSTRATIONS).examples]), VOCABULARY)
    for name in SIZES:
        write_models(name, tokenizer, out)
    chat = Chat(tokenizer)
    raw = json.loads((data / PAIRS).read_text(encoding="utf-8"))
    pairs, _ = pair_view(examples)
    cut = [pairs[tree.key] for tree in chat.trees(pairs, MAX_LENGTH)[0]]
    uncut = chat.trees(pairs, LONG)[0]
    # With a template's last newline a sequence is one token longer for the peers; TRL drops what is then too long.
    whole, read = ([pairs[tree.key] for tree in uncut if longest(tree) < most] for most in (MAX_LENGTH, CONTEXT))
    write_rows("pairs", raw, cut, out)
    write_rows("whole-pairs", raw, whole, out)
    write_rows("scored-pairs", raw, read, out)
    labels, _ = binary_view(load_examples(data / LABELS).examples)
    judged = [labels[tree.key] for tree in chat.trees(labels, MAX_LENGTH)[0]]
    write_rows("labels", json.loads((data / LABELS).read_text(encoding="utf-8")), judged, out)
    prompts, _ = prompt_view(examples)
    short = whole_steps([prompts[tree.key] for tree in chat.trees(prompts, PROMPT_LIMIT)[0]], ANSWERS)
    _write(out / "prompts.json", [raw[example.origin.row - 1] for example in short])
    asked = [short[i].prompt for i in order(len(short), seed=SEED, epoch=0)]
    _write(out / "peer-prompts.json", [chat.prompt_ids(prompt).tolist() for prompt in asked])
    _write(out / "peer-rollouts.json", [{"prompt": _plain(prompt)} for prompt in asked])


def write_models(name: str, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The causal model and the reward model of one size, and their copies for transformers 4."""
    size = dict(SIZES[name])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=size.pop("heads"),
        num_key_value_heads=size.pop("kv_heads"),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
        **size,
    )
    for suffix, kind in (("", LlamaForCausalLM), ("-reward", LlamaForSequenceClassification)):
        torch.manual_seed(SEED)
        folder, old = out / f"{name}{suffix}", out / "old" / f"{name}{suffix}"
        tokenizer.save_pretrained(folder)
        kind(config).save_pretrained(folder)
        shutil.copytree(folder, old)
        # Special tokens alone: PPO's prompts are handed over as ids, so no template is needed.
        specials = {"pad_token": tokenizer.pad_token, "eos_token": tokenizer.eos_token}
        _write(old / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **specials})


def write_rows(name: str, raw: Sequence[object], examples: list[Example], out: Path) -> None:
    """The rows of these examples, as many as fill whole steps, for both sides."""
    usable = whole_steps(examples, BATCH)
    _write(out / f"{name}.json", [raw[example.origin.row - 1] for example in usable])
    _write(out / f"peer-{name}.json", [_trl(usable[i]) for i in order(len(usable), seed=SEED, epoch=0)])


def longest(tree: TokenTree) -> int:
    """Tokens of the longest prompt plus response."""
    return len(tree.prompt) + max(len(branch) for branch in tree.branches)


def whole_steps(examples: list[Example], size: int) -> list[Example]:
    """As many as fill whole steps."""
    return examples[: len(examples) - len(examples) % size]


def _texts(examples: Sequence[Example]) -> list[str]:
    return [
        message.content
        for example in examples
        for messages in (example.prompt, *(response.messages for response in example.responses))
        for message in messages
    ]


def _trl(example: Example) -> dict[str, object]:
    """A pair, or an answer with its label, in TRL's conversational form."""
    (verdict,) = example.feedback
    if isinstance(verdict, Binary):
        (response,) = example.responses
        return {"prompt": _plain(example.prompt), "completion": _plain(response.messages), "label": verdict.label}
    chosen, rejected = (example.responses[index].messages for index in (verdict.chosen, verdict.rejected))
    return {"prompt": _plain(example.prompt), "chosen": _plain(chosen), "rejected": _plain(rejected)}


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
