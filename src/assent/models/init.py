"""`assent init`: a byte-level BPE tokenizer trained on given text and a small random Llama, so that every step works
offline and from nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from assent.config import InitConfig
from assent.data.formats import load_examples
from assent.errors import ConfigError, DataError
from assent.models.saving import check_new, complete_or_absent

log = logging.getLogger(__name__)

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"

# ChatML. The generation block marks what an assistant turn trains, for tools that read it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with a ChatML template: any text can be encoded, and decodes to itself.

    The vocabulary is `<|pad|>`, `<|im_start|>`, `<|im_end|>` (EOS), the 256 bytes, and as many merges as fit, or as
    the texts give: with little text it stays smaller than `vocab_size`.
    """
    specials = [PAD, TURN_START, TURN_END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(specials) + len(alphabet)
    if vocab_size < smallest:
        raise ConfigError(f"--vocab_size {vocab_size} is too small: {smallest} hold the bytes and the special tokens.")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if len(tokenizer) < vocab_size:
        log.warning("the text gives a vocabulary of %d tokens, less than the %d asked for", len(tokenizer), vocab_size)
    return tokenizer


def random_model(tokenizer: PreTrainedTokenizerFast, config: InitConfig) -> LlamaForCausalLM:
    """A Llama of the configured size with random weights (input and output embeddings tied), the same for the same
    seed; the global random state is left alone."""
    if config.hidden_size % config.heads or (config.hidden_size // config.heads) % 2:
        raise ConfigError(
            f"--hidden_size {config.hidden_size} must be an even multiple of --heads {config.heads}, "
            f"for example {2 * config.heads * max(1, config.hidden_size // (2 * config.heads))}."
        )
    if config.heads % config.kv_heads:
        raise ConfigError(f"--heads {config.heads} must be a multiple of --kv_heads {config.kv_heads}.")
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        # Llama's 8/3 of the width, rounded up to a size that matrix products like.
        intermediate_size=-(-8 * config.hidden_size // (3 * 32)) * 32,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def write_new_model(tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, out: str | Path) -> Path:
    """Writes a Hugging Face model folder, complete or not at all."""
    with complete_or_absent(out) as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return Path(out)


def init_model(config: InitConfig) -> Path:
    """Trains a tokenizer on the text of `config.data`, makes a random model, and writes both to `config.out`.

    Errors: `RunFolderError` where `out` holds something, `DataError` where the data has no text, `ConfigError` for an
    impossible size.
    """
    out = check_new(config.out)
    examples = load_examples(config.data, format=config.format).examples
    texts = [
        message.content
        for example in examples
        for messages in (example.prompt, *(response.messages for response in example.responses))
        for message in messages
    ]
    if not any(texts):
        raise DataError(f"{config.data} holds no text to train a tokenizer on.")
    transformers_logging.disable_progress_bar()
    tokenizer = train_tokenizer(texts, config.vocab_size)
    model = random_model(tokenizer, config)
    write_new_model(tokenizer, model, out)
    log.info(f"{out}: {model.num_parameters():,} parameters, a vocabulary of {len(tokenizer):,} tokens")
    return out
