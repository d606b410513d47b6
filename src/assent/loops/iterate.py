"""`assent iterate`: rounds of sampling, labelling, choosing what is learnt from, training and evaluating.

prompts.jsonl, held_out.jsonl     what is asked in all rounds, and in evaluations
start/eval                        the start, evaluated
round-N/prompts.jsonl             the prompts of the round
       /answers.jsonl             several answers to each
       /refresh, /reward          the reward model, trained again (where it is)
       /labelled.jsonl            the answers with what they are worth
       /chosen.jsonl              what is learnt from
       /METHOD                    the run that learns from it
       /eval                      its policy, evaluated beside the start
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from assent.config import EvalConfig, EvalJudgeConfig, ModelConfig, PolicyRunConfig, SourceConfig, settings
from assent.config.composed import composed
from assent.config.iterate import PEOPLE, POLICY, IterateConfig
from assent.config.training import START
from assent.data.dataset import prompt_hash
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Example
from assent.distributed import on_main
from assent.errors import ConfigError, DataError
from assent.loops.asked import label_by_people
from assent.loops.chosen import choose_from
from assent.loops.evaluated import evaluate_round
from assent.loops.labelled import label, spoken
from assent.loops.loop import Loop, here, opened, seed_of
from assent.loops.refresh import labeller, refreshed, reward_config
from assent.loops.sampled import sample
from assent.outputs import write_text
from assent.rewards.judge.prompt import read_prompt
from assent.rewards.outside import rewards_of

log = logging.getLogger(__name__)

PROMPTS, HELD_OUT = "prompts.jsonl", "held_out.jsonl"


def iterate(config: IterateConfig) -> Path:
    """Runs the rounds in `config.out`, and gives the run folder of the last. With `resume` an interrupted loop goes on,
    inside of a stage too, to the same bytes; finished stages are made sure of.

    Raises, before work is spent: ConfigError for options that do not fit, ModelError and DataError for what is not
    there. DataError for a round that nothing can be learnt from, Incomplete where people are to label, or a server has
    stopped answering."""
    with opened("iterate", config) as loop:
        _check(config)
        held_out = _asked(loop, config)
        policy, reward = config.model.path, config.labels.source[0]
        if held_out is not None:
            _evaluate(loop, config, held_out, 0, policy, reward)
        for number in range(1, config.rounds + 1):
            loop.say(f"round {number} of {config.rounds}, from {policy}")
            policy, reward = _round(loop, config, number, policy, reward)
            if held_out is not None:
                _evaluate(loop, config, held_out, number, policy, reward)
                loop.say(f"round {number}: {_told(loop, number)}")
        loop.say(f"the policy of the last round is {policy}")
    return Path(policy)


def _round(loop: Loop, config: IterateConfig, number: int, policy: str, reward: str) -> tuple[str, str]:
    """The policy and the reward model after a round."""
    place, seed = f"round-{number}", partial(seed_of, config.train.seed, number)
    size = None if config.each_round == "all" else int(loop.numbers(PROMPTS)["per_round"] or 1)
    prompts = loop.stage(
        f"{place}/{PROMPTS}",
        lambda path: on_main(lambda: _share(path, loop.folder / PROMPTS, size, number)),
        reads=(loop.folder / PROMPTS,),
        about="the prompts of the round",
    )
    answers = sample(
        loop,
        f"{place}/answers.jsonl",
        model=_model(config, policy),
        prompts=prompts,
        answers=config.answers,
        sampling=config.sampling,
        engine=config.engine,
        seed=seed("sample"),
    )
    if config.refresh.labels:
        reward = refreshed(loop, config, number, answers, reward)
    if config.labels.source == (PEOPLE,):
        labelled = label_by_people(loop, place, answers)
    else:
        labelled = label(loop, f"{place}/labelled.jsonl", answers, _labels(config, policy, reward))
    chosen = choose_from(
        loop,
        f"{place}/chosen.jsonl",
        labelled,
        config.choose,
        answers=config.answers,
        round=number,
        seed=seed("choose"),
    )
    begin = policy if config.begin == "last" else config.model.path
    run = training(config, str(chosen), begin, seed("train"))
    trained = loop.train(f"{place}/{config.method}", run, reads=(begin, chosen))
    return str(trained), reward


def training(config: IterateConfig, data: str, begin: str, seed: int) -> PolicyRunConfig:
    """The configuration of the training of a round, on `data`, from the model `begin`. Raises ConfigError."""
    shared = settings.plain(config)
    kept = ("max_length", "long", "strict", "max_bad")
    tree = {
        "model": settings.plain(_model(config, begin)),
        "data": {name: shared["data"][name] for name in kept} | {"train": data},
        "optim": shared["optim"],
        "train": shared["train"] | {"seed": seed},
        "out": config.out,
        "report_to": shared["report_to"],
    }
    if config.reference == "start":
        tree["reference"] = {"path": config.model.path}
    found: PolicyRunConfig = composed(config.method, tree, config.options)
    return found


def _model(config: IterateConfig, path: str) -> ModelConfig:
    """The model options for a policy of the loop: what the start was given, runs have with them."""
    if path == config.model.path:
        return config.model
    return replace(config.model, path=path, revision=None, chat_template=None, template_kwargs={})


def _labels(config: IterateConfig, policy: str, reward: str) -> SourceConfig:
    """What labels the answers of a policy."""
    words = (reward,) if config.refresh.labels else config.labels.source
    named = replace(config.labels, source=tuple(f"judge={policy}" if word == POLICY else word for word in words))
    return spoken(named, config.model.path)


# ---- prompts


def _asked(loop: Loop, config: IterateConfig) -> Path | None:
    """Writes the prompts of the loop, and those of its evaluations, which it gives: None without any."""
    data = config.data

    def read(path: Path, held: bool) -> Mapping[str, float]:
        own, others = _split(config)
        rows = others if held else own
        write_text(path, "".join(json_line(to_row(example)) for example in rows))
        share = -(-len(own) // config.rounds) if config.per_round is None else config.per_round
        return {"prompts": len(rows)} | ({} if held else {"per_round": min(share, len(own))})

    reads = here(data.train, data.eval)
    loop.stage(PROMPTS, lambda path: on_main(lambda: read(path, False)), reads=reads, about="prompts of all rounds")
    if data.eval is None and data.eval_fraction == 0:
        loop.say("no held-out prompts (--data.eval, --data.eval_fraction): the rounds are not evaluated")
        return None
    return loop.stage(
        HELD_OUT, lambda path: on_main(lambda: read(path, True)), reads=reads, about="prompts of the evaluations"
    )


def _split(config: IterateConfig) -> tuple[list[Example], list[Example]]:
    """The prompts to ask in the rounds, each once, in an order by chance, and those of evaluations."""
    data = config.data
    asked = _prompts(data.train, config)
    if data.eval is not None:
        held = _prompts(data.eval, config)
        taken = {example.prompt for example in held}
        own = [example for example in asked if example.prompt not in taken]
        if len(own) < len(asked):
            log.warning(f"{len(asked) - len(own):,} prompts of {data.train} are held out: they are in {data.eval} too")
    else:
        held = [example for example in asked if prompt_hash(example) < data.eval_fraction]
        own = [example for example in asked if prompt_hash(example) >= data.eval_fraction]
    if not own or (not held and data.eval_fraction > 0):
        raise DataError(f"{data.train}: of {len(asked):,} prompts {len(held):,} are held out: {len(own):,} are left.")
    random.Random(seed_of(config.train.seed, "prompts")).shuffle(own)
    return own, held


def _prompts(file: str, config: IterateConfig) -> list[Example]:
    data = config.data
    loaded = load_examples(file, format=data.format, columns=data.columns, split=data.split, limit=data.limit)
    for problem in loaded.problems[:10]:
        log.warning(f"left out: {problem}")
    found = {
        (example.prompt, example.tools): replace(example, responses=(), feedback=())
        for example in reversed(loaded.examples)
        if example.prompt
    }
    if not found:
        raise DataError(f"{file}: no row has a prompt to answer.")
    return list(reversed(found.values()))


def _share(path: Path, prompts: Path, size: int | None, number: int) -> Mapping[str, float]:
    """Writes the prompts of a round: all (`size` None), or the next `size` of them, from the first again at the end."""
    rows = prompts.read_bytes().splitlines(keepends=True)
    start = 0 if size is None else (number - 1) * size
    own = [rows[(start + place) % len(rows)] for place in range(len(rows) if size is None else size)]
    write_text(path, b"".join(own).decode())
    return {"prompts": len(own)}


# ---- evaluation


def _evaluate(loop: Loop, config: IterateConfig, held_out: Path, number: int, policy: str, reward: str) -> Path:
    """The evaluation of a round, 0 for the start, beside which later ones stand."""
    start, scored_by = f"{START}={config.model.path}", _scored_by(config, reward)
    judged = any(map(_is_judge, scored_by))
    options = EvalConfig(
        policies=(start,) if number == 0 else (start, f"round-{number}={policy}"),
        prompts=str(held_out),
        out=str(loop.folder),
        baseline=START,
        reference=config.model.path if _unbiased(config) else None,
        rewards=scored_by,
        scorer=config.scorer,
        measures=(*_measures(config, scored_by, number), *config.measures),
        answers=config.eval_answers,
        seed=seed_of(config.train.seed, "evaluation"),
        tokenizer=config.labels.tokenizer,
        precision=config.model.precision,
        trust_remote_code=config.model.trust_remote_code,
        sampling=config.sampling,
        judge=EvalJudgeConfig(**vars(config.labels.judge)) if judged else EvalJudgeConfig(),
        remote=config.labels.remote,
    )
    place = f"{START}/eval" if number == 0 else f"round-{number}/eval"
    return evaluate_round(loop, place, options, known=loop.folder / START / "eval" if number else None)


def _measures(config: IterateConfig, scored_by: Sequence[str], number: int) -> list[str]:
    """What every round is measured by, as far as it can be."""
    rates = not all(map(_is_judge, scored_by)) or bool(
        scored_by and not read_prompt(config.labels.judge.prompt).compares
    )
    met = {
        "reward": config.scorer is not None or rates,
        "win-rate": number > 0 and bool(scored_by or config.scorer),
        "kl": _unbiased(config),
        "length": True,
        "unfinished": True,
    }
    return [name for name, is_met in met.items() if is_met and name not in config.measures]


def _is_judge(word: str) -> bool:
    return word.removeprefix("reward=").startswith(("openai=", "judge="))


def _unbiased(config: IterateConfig) -> bool:
    sampling = config.sampling
    return sampling.temperature > 0 and sampling.top_k == 0 and sampling.top_p == 1


def _scored_by(config: IterateConfig, reward: str) -> tuple[str, ...]:
    """What scores the answers of evaluations: what labels, and with a reward model that is trained again also the first
    one. People and the policy itself are not asked."""
    words = [word for word in config.labels.source if word not in (PEOPLE, POLICY)]
    if config.refresh.labels:
        return (f"reward={reward}", *([f"first={words[0]}"] if reward != words[0] else []))
    return tuple(words) if len(words) != 1 else (f"reward={words[0]}",)


def _told(loop: Loop, number: int) -> str:
    """An evaluation in a line."""
    found = loop.numbers(f"round-{number}/eval")
    said = [name for name in found if not name.endswith(("_low", "_high"))]
    return ", ".join(f"{name} {value:.4g}" for name in said if (value := found[name]) is not None)


# ---- before work is spent


def _check(config: IterateConfig) -> None:
    """Raises for what could only fail later."""
    training(config, "chosen.jsonl", config.model.path, 0)
    if config.labels.source != (PEOPLE,):
        rewards = rewards_of(_labels(config, config.model.path, config.labels.source[0]))
        if config.refresh.labels and not rewards.model:
            raise ConfigError(f"--refresh.labels trains a reward model again, and --labels.source "
                              f"{config.labels.source[0]} is none.")  # fmt: skip
    if config.refresh.labels:
        reward_config(config, "train.jsonl", config.labels.source[0], 0)
        if config.refresh.labels != (PEOPLE,):
            rewards_of(labeller(config))
