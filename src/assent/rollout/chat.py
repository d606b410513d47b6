"""`assent generate`: answers from a model, for a file of prompts or in a conversation."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import TextIO

from assent import distributed
from assent.config import GenerateConfig, ModelConfig
from assent.data.chat import Chat
from assent.data.formats import load_examples, message_row, to_row
from assent.data.jsonl import check_new_file, json_line, write_rows
from assent.data.records import Example, Message, RowError
from assent.data.steerable import asked_for
from assent.data.views import prompt_view
from assent.distributed import World
from assent.errors import DataError, ModelError
from assent.foreign import message
from assent.models.loading import load_tokenizer, quiet_transformers
from assent.rollout.answering import Asked, Counts, answered, asked, opened, room_of, sampled_parts
from assent.rollout.engine import Completion, Engine

log = logging.getLogger(__name__)

HELP = "/system TEXT sets the system message, /reset forgets the conversation, /exit leaves."


def generate(config: GenerateConfig) -> None:
    """Answers every prompt of `config.prompts`, one JSON line for each, into `config.out` or onto standard output; or,
    without prompts, talks with the person at standard input.

    A line holds `prompt` (its messages), `response` (text), `tokens` (how many, EOS included) and `finished` (whether
    it ended by itself). With several answers to each prompt it is a row of assent's own shape (docs/formats.md): its
    `responses` are the answers, and `meta` lists `tokens` and `finished` of each beside the row's own columns; answers
    without any text are left out, and counted. The same model, prompts, sampling and seed give the same lines, however
    many ranks share the work. Rows that cannot be used are named on standard error. Errors: ModelError, DataError;
    RunFolderError where `config.out` exists already, OutputError where it cannot be written.
    """
    world = distributed.init()
    if config.out is not None:
        distributed.on_main(partial(check_new_file, config.out))
    quiet_transformers()
    examples = None if config.prompts is None else distributed.on_main(partial(_read_prompts, config))
    model = _model(config)
    chat, engine = opened(model, config.engine, config.sampling, world)
    if examples is None:
        converse(chat, engine, config, sys.stdin, sys.stdout)
        return
    prompts, problems = asked(chat, examples, room_of(model, config.sampling))
    for problem in problems:
        log.warning(f"left out: {problem}")
    if not prompts:
        raise DataError(f"{config.prompts}: none of the prompts can be answered. The first: {problems[0]}")
    rows = answer(chat, engine, prompts, config, world)
    if not world.is_main:
        deque(rows, maxlen=0)
    elif config.out is None:
        for row in rows:
            sys.stdout.write(json_line(row))
            sys.stdout.flush()
    else:
        log.info(f"{write_rows(rows, config.out)} answered prompts in {config.out}")


def answer(
    chat: Chat, engine: Engine, prompts: Sequence[Asked], config: GenerateConfig, world: World
) -> Iterator[dict[str, object]]:
    """A row for each prompt, in order."""
    counts = Counts()
    for _, own, groups in sampled_parts(engine, prompts, config.answers, config.sampling, config.seed, world):
        if config.answers > 1:
            found, more = answered(chat, own, groups, PurePath(config.model).name or None)
            counts += more
            yield from map(to_row, found)
            continue
        for one, (completion,) in zip(own, groups, strict=True):
            yield {
                "prompt": [message_row(turn) for turn in one.example.prompt],
                "response": chat.decode(completion.ids, one.ids, finished=completion.finished),
                "tokens": len(completion),
                "finished": completion.finished,
            }
    for sentence in counts.sentences():
        log.warning(sentence)


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
    model = ModelConfig(path=config.model, precision=config.precision)
    if config.attributes is None:
        return model
    template = load_tokenizer(model).chat_template
    asked = asked_for(template, config.attributes, "--attributes", config.model)
    return replace(model, template_kwargs={**asked})


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
