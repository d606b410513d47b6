"""`assent contrast`: pairs without a judge. One answer is sampled under a prompt that asks for good, one under a nearly
equal one that asks for bad; the pair stands under the plain prompt and is labelled by its prompts (RLCD, arXiv
2307.12950)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import yaml
from rich.text import Text

from assent import distributed
from assent.config import ContrastConfig, ModelConfig
from assent.config.judge import WriterConfig
from assent.config.nodes import composed, shown
from assent.config.people import is_served
from assent.data.records import Example, Message, Pair, Problem, Response
from assent.data.views import prompt_view
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.files import not_a_file
from assent.models.loading import quiet_transformers
from assent.names import suggestion
from assent.people import asked
from assent.people.asked import Cost
from assent.people.principles import draw
from assent.people.writers import AskedWriter, SampledFrom, SampledWriter, Written
from assent.rewards.judge.folder import Place

log = logging.getLogger(__name__)

FILE = Path(__file__).with_name("contrast.yaml")
BUILT_IN = ("harmlessness", "helpfulness")
PROMPT = "{prompt}"
CONTRAST = "contrast"
"""The column, and the annotator, of a pair that its prompts have labelled."""
SAME = "both answers are the same"
SIDES = ("positive", "negative")


@dataclass(frozen=True, slots=True)
class Template:
    """Two texts with a place for the prompt's."""

    positive: str
    negative: str


@dataclass(frozen=True)
class ContrastSummary:
    """Pairs written, of how many prompts; why rows are left out, and why prompts have no pair."""

    file: str
    prompts: int
    rows: int
    left_out: Mapping[str, int]
    failures: Mapping[str, int]
    cost: Cost


def contrast(config: ContrastConfig) -> ContrastSummary:
    """Samples two answers to each prompt of `config.prompts`, under the two sides of a template that is drawn for it,
    and writes the pair under the plain prompt; `meta.contrast` has what was asked. A prompt one of whose answers is cut
    off, empty, or equal to the other has no pair, and is counted.

    Raises ConfigError, DataError and ModelError before anything is asked; when all is written, Incomplete where a
    server left questions without an answer, DataError where there is no pair at all."""
    quiet_transformers()
    world = distributed.init()
    templates = distributed.on_main(partial(read_templates, config.templates))
    read = [config.prompts, config.templates]
    distributed.on_main(partial(asked.check_places, config.out, config.resume, config.summary, read))
    examples, left_out = distributed.on_main(partial(_prompts, config))
    drawn = [templates[draw(len(templates), config.seed, e.origin.row)] for e in examples]
    writer = _writer(config, world)
    talks = [under(example, text) for example, one in zip(examples, drawn) for text in (one.positive, one.negative)]
    log.info(f"contrast: {len(talks):,} answers to {len(examples):,} prompts")
    said = writer.write(dict(enumerate(talks)))
    writer.close()
    rows: list[Example] = []
    failures = Counter[str]()
    for number, (example, template) in enumerate(zip(examples, drawn, strict=True)):
        made = paired(example, template, said[2 * number], said[2 * number + 1], writer.name)
        if isinstance(made, str):
            failures[made] += 1
        else:
            rows.append(made)
    cost = writer.cost
    summary = ContrastSummary(config.prompts, len(examples), len(rows), left_out, dict(failures), cost)
    if world.is_main:
        if rows:
            asked.write_examples(rows, config.out)
        asked.write_summary(config.summary, summary)
        render(summary, config.out, writer.name)
    asked.check_answered(config.out, {writer.name: cost}, len(rows))
    if not rows:
        raise DataError(
            f"--out {config.out}: none of {len(examples)} prompts has a pair. Mostly: {failures.most_common(1)[0][0]}."
        )
    return summary


def _prompts(config: ContrastConfig) -> tuple[list[Example], Mapping[str, int]]:
    """The prompts that end with a user's turn, and why others are left out."""
    loaded, reasons = asked.read_rows(config.prompts, limit=config.limit)
    examples, unfit = prompt_view(loaded)
    kept, problems = [], list(unfit)
    for example in examples:
        if example.prompt[-1].role == "user":
            kept.append(example)
        else:
            problems.append(
                Problem(example.origin, "prompt", "does not end with a user's turn, which templates change")
            )
    asked.say_problems(config.prompts, problems)
    if not kept:
        raise DataError(f"{config.prompts}: no prompt ends with a user's turn. The first: {problems[0]}.")
    if config.resume:
        asked.check_same(config.out, kept)
    return kept, dict(reasons + Counter(problem.reason for problem in problems))


def _writer(config: ContrastConfig, world: World) -> AskedWriter | SampledWriter:
    if "://" in config.model and not is_served(config.model):
        raise ConfigError("MODEL: a server is openai=URL, perhaps with a name before it: NAME=openai=URL.")
    if is_served(config.model):
        (name, spec), *_ = asked.named([config.model], config.judge, "MODEL").items()
        options = WriterConfig(
            **vars(config.judge),
            temperature=config.sampling.temperature,
            max_tokens=config.sampling.max_new_tokens,
            seed=config.seed,
        )
        return AskedWriter(spec, name, options, config.remote, Place(world.device), "MODEL")
    model = ModelConfig(config.model, precision=config.precision)
    return SampledWriter(SampledFrom(model, config.sampling, config.engine, config.seed, config.judge.cache))


# ---- what is asked, and what becomes of it: pure functions


def under(example: Example, template: str) -> tuple[Message, ...]:
    """The prompt with its last turn as one side of a template has it."""
    last = example.prompt[-1]
    return (*example.prompt[:-1], replace(last, content=template.replace(PROMPT, last.content)))


def paired(
    example: Example, template: Template, positive: Written | str, negative: Written | str, source: str
) -> Example | str:
    """The pair of two answers, labelled by their prompts; or why there is none."""
    for side, answer in zip(SIDES, (positive, negative), strict=True):
        if isinstance(answer, str):
            return f"{side}: {answer}"
    assert isinstance(positive, Written) and isinstance(negative, Written)
    if positive.text == negative.text:
        return SAME
    texts = (positive.text, negative.text)
    responses = tuple(Response((Message("assistant", text),), source) for text in texts)
    meta = {**example.meta, CONTRAST: {"positive": template.positive, "negative": template.negative}}
    return replace(example, responses=responses, feedback=(Pair(0, 1, annotator=CONTRAST),), meta=meta)


def read_templates(name: str, flag: str = "--templates") -> tuple[Template, ...]:
    """Built-in templates, or those of a YAML file: a list of {positive, negative}. Raises ConfigError, with file and
    line, where one has no place for the prompt, or two sides are the same."""
    if name not in BUILT_IN and Path(name).suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"{flag}: there are no templates '{name}'.{suggestion(name, BUILT_IN)} Known: {', '.join(BUILT_IN)}; or "
            "give a file NAME.yaml."
        )
    file = FILE if name in BUILT_IN else Path(name)
    source = f"{flag} {file}"
    if (kind := not_a_file(file)) is not None:
        raise ConfigError(f"{source}: it is {kind}. Give a YAML file.")
    try:
        node = composed(file.read_bytes().decode("utf-8-sig"), source)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{source}: {reason}.") from None
    if name in BUILT_IN:
        assert isinstance(node, yaml.MappingNode)
        node = next(value for key, value in node.value if key.value == name)
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        _fail(source, node, "expected a list of {positive: ..., negative: ...}")
    return tuple(_template(source, item) for item in node.value)


def _template(source: str, node: yaml.Node) -> Template:
    fields = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    if fields.keys() != {*SIDES}:
        _fail(source, node, f"a template is {{positive: ..., negative: ...}}; got {shown(node)}")
    texts = {}
    for side, value in fields.items():
        if not isinstance(value, yaml.ScalarNode) or value.value.count(PROMPT) != 1:
            _fail(
                source, value, f"{side} must be text with {PROMPT} once, in the place of the prompt; got {shown(value)}"
            )
        texts[side] = str(value.value)
    if texts["positive"].split() == texts["negative"].split():
        _fail(source, node, "both sides ask for the same")
    return Template(**texts)


def _fail(source: str, node: yaml.Node | None, reason: str) -> NoReturn:
    raise ConfigError(f"{source}:{node.start_mark.line + 1 if node else 1}: {reason}.")


def render(summary: ContrastSummary, out: str, name: str) -> None:
    """The tables."""
    console = asked.console()
    place = f" in {out}" if summary.rows else ""
    console.print(Text(f"{summary.rows:,} pairs{place}, of {summary.prompts:,} prompts of {summary.file}"))
    for what, reasons in {"left out": summary.left_out, "no pair": summary.failures}.items():
        for line in asked.reason_lines(what, reasons):
            console.print(Text(line))
    asked.show_costs(console, {name: summary.cost})
