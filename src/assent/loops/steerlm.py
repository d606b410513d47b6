"""`assent steerlm`: a policy whose answers can be asked to be more or less of each attribute (arXiv 2310.05344).

attributes/              the attribute model, where none is given
data/labelled.jsonl      the demonstrations with a label at each answer
template.jinja           the chat template that writes labels before answers, and what it asks for by default
round-1/sft/             SFT on the labelled demonstrations
round-1/steering.json    asked against measured values, of each attribute
round-2/labelled.jsonl   answers of the policy, asked to be what is wanted, with the labels that they really got
round-2/sft/             SFT on these and the demonstrations, from the policy
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from assent.config import AttributesConfig, SFTConfig, SourceConfig, SteerLMConfig, settings
from assent.config.composed import composed
from assent.data.attributes import AttributeView, attributes_in
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.records import Example, Message, Rating, Response
from assent.data.steerable import best_values, companions_of, make_steerable
from assent.data.steering import Steering, read_attributes, steering_of
from assent.distributed import on_main
from assent.errors import ConfigError, DataError, ModelError
from assent.loops.demonstrations import Attributes, Labeller, demonstrations, labels_in, say, write
from assent.loops.labelled import label, read_answers
from assent.loops.loop import Loop, opened, seed_of
from assent.loops.sampled import sample
from assent.loops.steered import bare, render, steered
from assent.models.loading import load_tokenizer
from assent.models.reward_head import HeadRule
from assent.models.sources import ask_hub, resolve
from assent.models.stored_heads import stored_heads
from assent.names import suggestion
from assent.outputs import write_text

log = logging.getLogger(__name__)

ATTRIBUTES = "reward-attributes"
"""The command that trains attribute models."""


def steerlm(config: SteerLMConfig) -> Path:
    """Runs all rounds in `config.out`; gives the run folder of the last policy. It can be killed anywhere, and goes on
    with `resume`.

    Raises ConfigError for options that cannot be, ModelError for an attribute model without attributes and a chat
    template that cannot write them, DataError where nothing is left to learn from, and what the stages raise."""
    with opened("steerlm", config) as loop:
        sft = sft_config(config)
        chat = _chat(config)
        on_main(lambda: _check(config, chat))
        labeller = labeller_of(loop, config)
        data = demonstrations(loop, "data", config.data.train, config.data, labeller, chat)
        held = None
        if config.data.eval is not None:
            held = demonstrations(loop, "eval", config.data.eval, config.data, labeller, chat)
        template = loop.stage(
            "template.jinja",
            lambda path: _write_template(path, config, labeller, data),
            reads=[data],
            about="the chat template with attributes",
        )
        policy, measured = config.model.path, None
        for number in range(1, config.rounds + 1):
            place = f"round-{number}"
            loop.say(f"round {number} of {config.rounds}, from {policy}")
            rows = data if number == 1 else own_answers(loop, place, policy, config, labeller, data)
            first = number == 1
            model = replace(sft.model, path=policy, chat_template=str(template) if first else None, template_kwargs={})
            lines = replace(sft.data, train=str(rows), eval=None if held is None else str(held))
            train = replace(sft.train, seed=seed_of(sft.train.seed, place, "sft"))
            run = replace(sft, model=model, data=lines, train=train)
            policy = str(loop.train(f"{place}/sft", run, reads=[policy, rows, template]))
            measured = _steered(loop, place, policy, config, labeller, data, template)
        if measured is not None and loop.world.is_main:
            render(json.loads(measured.read_text()), Console(width=None if sys.stdout.isatty() else 120))
        loop.say(f"done. To ask for something: assent generate {policy} --attributes NAME=VALUE,...")
        return Path(policy)


# ---- options


def sft_config(config: SteerLMConfig) -> SFTConfig:
    """The configuration of each SFT run but for what is its own: model, data and place. Raises ConfigError."""
    shared = {name: value for name, value in settings.plain(config).items() if name not in ("rounds", "options")}
    taken = ("model.path", "model.chat_template", "model.template_kwargs", "data.train", "data.eval", "data.format",
             "data.columns", "data.split", "data.limit")  # fmt: skip
    found: SFTConfig = composed("sft", shared, config.options, taken=taken)
    return replace(found, data=replace(found.data, format="assent", columns={}, split="train", limit=None))


def attributes_config(config: SteerLMConfig) -> AttributesConfig:
    """The configuration of the attribute model's run. Raises ConfigError."""
    shared = {name: value for name, value in settings.plain(config).items() if name not in ("rounds", "options")}
    shared["data"] = {"train": config.steering.ratings, "max_length": config.data.max_length}
    found: AttributesConfig = composed(
        ATTRIBUTES, shared, config.steering.options, flag="--steering.options", taken=("data.train",)
    )
    return replace(found, train=replace(found.train, seed=seed_of(found.train.seed, "attributes")))


def _chat(config: SteerLMConfig) -> Chat:
    model = config.model
    return Chat(load_tokenizer(model), model.chat_template, model.template_kwargs)


def _check(config: SteerLMConfig, chat: Chat) -> None:
    """Before anything is trained: whether the attributes, the line, the template and what is wanted fit each other."""
    steering = config.steering
    if steering.model is None:
        run = attributes_config(config)
        assert steering.ratings is not None
        loaded = load_examples(steering.ratings, format=run.data.format, columns=run.data.columns, split=run.data.split)
        view = AttributeView(run.attributes.outputs, run.attributes.scale)
        rated, _ = view(loaded.examples)
        names = run.attributes.outputs or attributes_in(loaded.examples)
        table = np.array([[r.scores[n] for n in names] for e in rated for r in e.feedback if isinstance(r, Rating)])
        scales = [(float(np.nanmin(column)), float(np.nanmax(column))) for column in table.T]
        rule = HeadRule(tuple(names), scale=tuple(scales), weights=(1.0,) * len(names))
    else:
        rule = _rule(steering.model)
    chosen = steering_for(config, rule)
    _wanted(config, chosen)
    make_steerable(_chat(config).tokenizer, chosen)


def steering_for(config: SteerLMConfig, rule: HeadRule) -> Steering:
    """The attributes of the policy, those of a model with this rule that are asked for; without defaults as yet. Raises
    ConfigError for names that it does not have, and for a scale that its ratings go beyond."""
    options = config.steering
    names = options.names or rule.names
    for flag, given in (("names", options.names), ("sweep", options.sweep)):
        known = rule.names if flag == "names" else names
        if len(set(given)) < len(given):
            raise ConfigError(f"--steering.{flag} {' '.join(given)}: each once.")
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"--steering.{flag}: the attribute model has no '{name}'.{suggestion(name, known)} There are: "
                    f"{', '.join(known)}."
                )
    for name, scale in zip(rule.names, rule.scale, strict=False):
        if name in names and not (options.lowest - 0.5 <= scale[0] and scale[1] <= options.highest + 0.5):
            raise ConfigError(
                f"--steering.lowest {options.lowest} --steering.highest {options.highest}: the ratings of {name} go "
                f"from {scale[0]:g} to {scale[1]:g}. Give a scale that holds them."
            )
    return Steering(names, (options.lowest,) * len(names), options.lowest, options.highest, options.line)


def _wanted(config: SteerLMConfig, steering: Steering) -> dict[str, int]:
    """What --steering.wanted says. Raises ConfigError."""
    text = config.steering.wanted
    try:
        return {} if text is None else steering.checked(read_attributes(text))
    except ValueError as error:
        raise ConfigError(f"--steering.wanted {text}: {error}.") from None


# ---- the attribute model


def labeller_of(loop: Loop, config: SteerLMConfig) -> Labeller:
    """The attribute model, trained first where only ratings are given."""
    model = config.steering.model
    if model is None:
        run = attributes_config(config)
        model = str(loop.train("attributes", run, reads=[config.model.path, run.data.train]))
    rule = on_main(lambda: _rule(model))
    weights = {} if rule.weights else dict.fromkeys(rule.names, 1.0)
    source = SourceConfig(source=(model,), weights=weights, precision=config.model.precision)
    return Labeller(source, rule, steering_for(config, rule))


def _rule(model: str) -> HeadRule:
    source = resolve(model)
    ask_hub(source)
    rule = stored_heads(source).rule
    if rule is None or rule.ensemble or rule.names == ("reward",):
        found = "no reward head" if rule is None else f"outputs {', '.join(rule.names)} for one reward"
        raise ModelError(
            f"--steering.model {model} measures no attributes: it has {found}. assent {ATTRIBUTES} trains a model that "
            "does, from ratings (--steering.ratings)."
        )
    return rule


# ---- stages


def _write_template(path: Path, config: SteerLMConfig, labeller: Labeller, data: Path) -> Mapping[str, float]:
    """The chat template that SFT is given. Its defaults are what is wanted, else the labels that the best answers most
    often have."""
    labels = on_main(lambda: labels_in(read_answers(data)))
    table = [[value for _, value in each] for each in labels]
    worth, steering = labeller.worth(labels), labeller.steering
    together = companions_of(table, worth, steering)
    steering = replace(steering, defaults=best_values(table, worth), companions=together)
    defaults = steering.completed(_wanted(config, labeller.steering))
    log.info(f"asked for by default: {','.join(f'{name}={value}' for name, value in defaults.items())}")
    chat = make_steerable(_chat(config).tokenizer, replace(steering, defaults=tuple(defaults.values())))
    on_main(lambda: write_text(path, chat.template))
    return {f"default/{name}": value for name, value in defaults.items()}


def own_answers(loop: Loop, place: str, policy: str, config: SteerLMConfig, labeller: Labeller, data: Path) -> Path:
    """`place`/labelled.jsonl: answers of the policy, asked to be what is wanted, each with the label that it really
    got, and behind them demonstrations. Answers that were cut off or could not be scored are left out.

    Numbers of the last stage: `rows`, `own`, `unfinished`, `unscored`, `clamped`, and the mean label of the own answers
    by attribute. Raises DataError where none is left."""
    answers = sample(
        loop,
        f"{place}/answers.jsonl",
        model=policy,
        prompts=config.prompts or data,
        answers=config.answers,
        sampling=config.sampling,
        engine=config.engine,
        seed=seed_of(config.train.seed, place, "answers"),
    )
    rated = label(
        loop, f"{place}/rated.jsonl", bare(loop, f"{place}/bare.jsonl", answers, labeller.steering), labeller.source
    )

    def join(path: Path) -> Mapping[str, float]:
        own, numbers = relabelled(read_answers(rated), labeller)
        if not own:
            raise DataError(
                f"{rated}: no answer of the policy can be learnt from: {numbers['unfinished']:,} were cut off "
                f"(--sampling.max_new_tokens), {numbers['unscored']:,} could not be scored."
            )
        say(numbers)
        table = np.array([[value for _, value in each] for each in labels_in(own)])
        means = dict(zip(labeller.steering.names, table.mean(0), strict=True))
        kept = share_of(read_answers(data), config.demonstrations, seed_of(config.train.seed, place, "demonstrations"))
        return {
            **write(path, [*own, *kept]),
            "own": len(own),
            **numbers,
            **{f"label/{name}": float(mean) for name, mean in means.items()},
        }

    return loop.stage(f"{place}/labelled.jsonl", join, reads=[rated, data], about="own answers with their labels")


def relabelled(examples: list[Example], labeller: Labeller) -> tuple[list[Example], dict[str, int]]:
    """Each answer as a demonstration of the label that it got, and what is left out."""
    numbers = dict.fromkeys(("unfinished", "unscored", "clamped"), 0)
    made = []
    for example in examples:
        found = {item.response: item for item in example.feedback if isinstance(item, Rating)}
        for index, response in enumerate(example.responses):
            rating = found.get(index)
            labels: tuple[Attributes, int] | None = None if rating is None else labeller.labels(rating)
            if not response.finished:
                numbers["unfinished"] += 1
            elif labels is None:
                numbers["unscored"] += 1
            else:
                numbers["clamped"] += labels[1]
                turn = Message("assistant", response.text, attributes=labels[0])
                made.append(replace(example, responses=(Response((turn,), response.source),), feedback=(), meta={}))
    return made, numbers


def share_of(examples: list[Example], share: float, seed: int) -> list[Example]:
    """A random part of the examples, in their order."""
    count = round(share * len(examples))
    kept = np.sort(np.random.default_rng(seed).permutation(len(examples))[:count])
    return [examples[index] for index in kept]


def _steered(
    loop: Loop, place: str, policy: str, config: SteerLMConfig, labeller: Labeller, data: Path, template: Path
) -> Path:
    options, known = config.steering, steering_of(template.read_text(encoding="utf-8"))
    assert known is not None
    return steered(
        loop,
        place,
        policy,
        prompts=options.prompts or config.data.eval or config.prompts or str(data),
        limit=options.limit,
        sweep=options.sweep or labeller.steering.names,
        labeller=replace(labeller, steering=known),
        sampling=config.sampling,
        engine=config.engine,
        seed=config.train.seed,
    )
