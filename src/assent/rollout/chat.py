"""`assent generate`: answers from a model, for a file of prompts or in a conversation."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TextIO

import torch

from assent.config import GenerateConfig, ModelConfig
from assent.data.chat import Chat
from assent.data.formats import load_examples, message_row
from assent.data.jsonl import check_new_file, json_line, write_rows
from assent.data.records import Example, Message, RowError
from assent.data.steerable import asked_for
from assent.data.views import prompt_view
from assent.errors import DataError, ModelError
from assent.foreign import message
from assent.models.loading import load_policy, load_tokenizer, quiet_transformers, resolve_precision
from assent.models.saving import generation_config, stop_ids
from assent.models.sources import model_folder
from assent.models.vocabulary import check_vocabulary
from assent.rollout.build import engine_for, torch_engine
from assent.rollout.check import check_sampling
from assent.rollout.engine import Completion, Engine

log = logging.getLogger(__name__)

HELP = "/system TEXT sets the system message, /reset forgets the conversation, /exit leaves."

_ROUND = 16  # a batch of prompts is answered in rounds of this many times `max_batch`, so that rows appear meanwhile


def generate(config: GenerateConfig) -> None:
    """Answers every prompt of `config.prompts`, one JSON line for each, into `config.out` or onto standard output; or,
    without prompts, talks with the person at standard input.

    A line holds `prompt` (its messages), `response` (text), `tokens` (how many, EOS included) and `finished` (whether
    it ended by itself). The same model, prompts, sampling and seed give the same lines. Rows that cannot be used are
    named on standard error. Errors: ModelError, DataError; RunFolderError where `config.out` exists already,
    OutputError where it cannot be written.
    """
    if config.out is not None:
        check_new_file(config.out)
    quiet_transformers()
    if config.prompts is None:
        chat, engine = _load(config)
        converse(chat, engine, config, sys.stdin, sys.stdout)
        return
    examples = _read_prompts(config)
    chat, engine = _load(config)
    rows = answer(chat, engine, examples, config)
    if config.out is None:
        for row in rows:
            sys.stdout.write(json_line(row))
            sys.stdout.flush()
    else:
        log.info(f"{write_rows(rows, config.out)} answers in {config.out}")


def answer(
    chat: Chat, engine: Engine, examples: Sequence[Example], config: GenerateConfig
) -> Iterator[dict[str, object]]:
    """One row for the prompt of each example that the chat template accepts, in order."""
    encoded = []
    for example in examples:
        try:
            encoded.append((example.prompt, chat.prompt_ids(example)))
        except RowError as error:
            log.warning(f"left out: {error.at(example.origin)}")
    if not encoded:
        raise DataError(f"{config.prompts}: the chat template accepts none of the prompts.")
    size = _ROUND * config.sampling.max_batch
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        groups = engine.generate([ids for _, ids in part], 1, config.sampling, config.seed, start)
        for (prompt, ids), (completion,) in zip(part, groups, strict=True):
            yield {
                "prompt": [message_row(message) for message in prompt],
                "response": chat.decode(completion.ids, ids, finished=completion.finished),
                "tokens": len(completion),
                "finished": completion.finished,
            }


def converse(chat: Chat, engine: Engine, config: GenerateConfig, source: TextIO, out: TextIO) -> None:
    """Reads a line, answers it with the whole conversation in mind, until /exit or the end of `source`. A turn that the
    model cannot take (too long, or refused by the template) is reported and forgotten."""
    start = (Message("system", config.system),) if config.system else ()
    history = start
    turn = 0
    at_terminal = source.isatty()
    if at_terminal:
        print(HELP, file=out)
    while True:
        if at_terminal:
            print("\n> ", end="", file=out, flush=True)
        line = source.readline()
        if not line or line.strip() == "/exit":
            return
        command, _, text = line.strip().partition(" ")
        if command == "/reset":
            history = start
        elif command == "/system":
            start = history = (Message("system", text.strip()),) if text.strip() else ()
        elif command.startswith("/"):
            print(HELP, file=out)
        elif line.strip():
            asked = (*history, Message("user", line.strip()))
            try:
                ids = chat.prompt_ids(asked)
                ((completion,),) = engine.generate([ids], 1, config.sampling, config.seed, turn)
            except (ModelError, RowError) as error:
                print(f"error: {message(error)} (/reset forgets the conversation)", file=out)
                continue
            turn += 1
            reply = chat.decode(completion.ids, ids, finished=completion.finished)
            history = (*asked, Message("assistant", reply))
            print(reply + _cut(completion), file=out, flush=True)


def _cut(completion: Completion) -> str:
    return "" if completion.finished else f" [cut after {len(completion)} tokens]"


def _model(config: GenerateConfig) -> ModelConfig:
    """The model, told by its chat template's variables which attributes its answers are asked to have."""
    model = ModelConfig(path=config.model, precision=config.precision, layout="flat")
    if config.attributes is None:
        return model
    template = load_tokenizer(model).chat_template
    return replace(model, template_kwargs=asked_for(template, config.attributes, "--attributes", config.model))


def _load(config: GenerateConfig) -> tuple[Chat, Engine]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(config)
    chat = Chat(load_tokenizer(model), variables=model.template_kwargs)
    if config.engine.name == "vllm":
        precision = resolve_precision(config.precision, device)
        path = model_folder(config.model)
        ends = stop_ids(chat, generation_config(path))
        return chat, engine_for(path, config.engine, ends, config.sampling, precision)
    policy = load_policy(model, max_length=config.sampling.max_new_tokens, device=device, trainable=False)
    check_vocabulary(policy.plain, chat.tokenizer, config.model)
    check_sampling(policy.model, config.sampling.max_new_tokens)
    return chat, torch_engine(policy, chat, compiled=config.engine.compile)


def _read_prompts(config: GenerateConfig) -> list[Example]:
    """The prompts of the file, each with `config.system` before it where it has no system message of its own."""
    assert config.prompts is not None
    loaded = load_examples(config.prompts, limit=config.limit)
    examples, unusable = prompt_view(loaded.examples)
    for problem in [*loaded.problems, *unusable]:
        log.warning(f"left out: {problem}")
    system = (Message("system", config.system),) if config.system else ()
    return [
        e if e.prompt[0].role in ("system", "developer") else replace(e, prompt=system + e.prompt) for e in examples
    ]
