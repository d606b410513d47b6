"""Stages in which the reward model of a loop is trained again, on answers of the policy as it is now that something
dearer has labelled: how far it is right about them before and after."""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from assent.config import RunConfig, ScoreConfig, SourceConfig, settings
from assent.config.composed import composed
from assent.config.iterate import PEOPLE, IterateConfig
from assent.data.formats import load_examples, to_row
from assent.data.formats.fields import same_answer
from assent.data.jsonl import json_line
from assent.data.records import Example
from assent.data.views import pair_view
from assent.distributed import on_main
from assent.errors import DataError
from assent.evaluate.agreement import Collected
from assent.evaluate.score import Summary, answered, scored_rows, summarised
from assent.loops.asked import label_by_people
from assent.loops.chosen import reduced
from assent.loops.labelled import label, read_answers, spoken
from assent.loops.loop import Loop, here, seed_of
from assent.outputs import write_text
from assent.rewards.outside import open_source

log = logging.getLogger(__name__)

BEFORE, AFTER, ASKED, HELD_OUT, TRAIN = "before.json", "after.json", "asked.jsonl", "held_out.jsonl", "train.jsonl"


def refreshed(loop: Loop, config: IterateConfig, number: int, answers: Path, reward: str) -> str:
    """The reward model of a round: `reward`, trained again on what the labeller of `config.refresh` says of some of
    `answers`, mixed with old labels. In round-N/refresh stand what was asked and said, what was held out, and the
    accuracy on it before and after; round-N/reward is the run."""
    options, place = config.refresh, f"round-{number}/refresh"
    seed = seed_of(config.train.seed, number, "refresh")
    asked = loop.stage(
        f"{place}/{ASKED}",
        lambda path: on_main(lambda: _ask(path, answers, config, seed)),
        reads=(answers,),
        about=f"answers to be labelled by {' + '.join(options.labels)}",
    )
    if options.labels == (PEOPLE,):
        labelled = label_by_people(loop, place, asked)
    else:
        labelled = label(loop, f"{place}/labelled.jsonl", asked, labeller(config))
    held_out = loop.stage(
        f"{place}/{HELD_OUT}",
        lambda path: on_main(lambda: _hold_out(path, labelled, options.held_out, seed)),
        reads=(labelled,),
        about="labels that the reward model is not trained on",
    )
    _measure(loop, f"{place}/{BEFORE}", held_out, replace(config.labels, source=(reward,)))
    fresh = [loop.folder / f"round-{n}/refresh" for n in range(1, number + 1)]
    mixed = loop.stage(
        f"{place}/{TRAIN}",
        lambda path: on_main(lambda: _mix(path, fresh, options.data, options.share, seed)),
        reads=(labelled, held_out, *here(options.data)),
        about="new labels of all rounds, and old ones",
    )
    begin = reward if options.begin == "last" else config.labels.source[0]
    run = loop.train(f"round-{number}/reward", reward_config(config, str(mixed), begin, seed), reads=(begin, mixed))
    _measure(loop, f"{place}/{AFTER}", held_out, replace(config.labels, source=(str(run),)))
    before, after = (loop.numbers(f"{place}/{name}")["accuracy"] for name in (BEFORE, AFTER))
    spent = sum(_count(loop.numbers(f"round-{n}/refresh/{ASKED}")["answers"]) for n in range(1, number + 1))
    loop.say(f"round {number}: the reward model is right about {_percent(before)} of the pairs held out, then "
             f"{_percent(after)}; {spent:,} answers were labelled so far")  # fmt: skip
    return str(run)


def labeller(config: IterateConfig) -> SourceConfig:
    """What labels answers for the reward model."""
    own = config.refresh
    named = replace(config.labels, source=own.labels, weights={}, ensemble="mean", remote=own.remote, judge=own.judge)
    return spoken(named, config.model.path)


def reward_config(config: IterateConfig, data: str, begin: str, seed: int) -> RunConfig:
    """The configuration of the training of a reward model. Raises ConfigError."""
    shared = settings.plain(config)
    tree = {
        "model": shared["model"] | {"path": begin, "revision": None, "chat_template": None, "template_kwargs": {}},
        "data": {name: shared["data"][name] for name in ("max_length", "long", "strict", "max_bad")} | {"train": data},
        "optim": shared["optim"],
        "train": shared["train"] | {"seed": seed, "eval_every": 0, "final": "last"},
        "out": config.out,
        "report_to": shared["report_to"],
    }
    found: RunConfig = composed(config.refresh.method, tree, config.refresh.options, flag="--refresh.options")
    return found


def _ask(path: Path, answers: Path, config: IterateConfig, seed: int) -> Mapping[str, float]:
    """Some answers to some prompts, both by chance, as many as the budget allows; each answer once, and what may be
    learnt from."""
    options, cut = config.refresh, config.choose.unfinished == "keep"
    rng = random.Random(seed)
    found = [one for row in read_answers(answers) if (one := _some(row, options.answers, cut, rng)) is not None]
    if len(found) < 2:
        raise DataError(
            f"{answers}: {len(found)} prompts have {options.answers} different answers"
            f"{'' if cut else ' that finished'}: too few to label. Longer answers (--sampling.max_new_tokens), or "
            "fewer of each prompt (--refresh.answers)."
        )
    kept = sorted(rng.sample(range(len(found)), min(len(found), options.budget // options.answers)))
    _write(path, [found[index] for index in kept])
    return {"prompts": len(kept), "answers": sum(len(found[index].responses) for index in kept)}


def _some(example: Example, count: int, cut: bool, rng: random.Random) -> Example | None:
    places: list[int] = []
    for place, response in enumerate(example.responses):
        if (response.finished or cut) and not any(same_answer(example.responses[one], response) for one in places):
            places.append(place)
    return reduced(example, sorted(rng.sample(places, count))) if len(places) >= count else None


def _hold_out(path: Path, labelled: Path, share: float, seed: int) -> Mapping[str, float]:
    """Some prompts with a comparison, by chance."""
    examples, unused = pair_view(read_answers(labelled))
    if len(examples) < 2:
        raise DataError(f"{labelled}: {len(examples)} prompts have answers of different worth: nothing to learn from.")
    count = min(max(1, round(share * len(examples))), len(examples) - 1)
    kept = sorted(random.Random(seed).sample(range(len(examples)), count))
    _write(path, [examples[index] for index in kept])
    return {"prompts": count, "of": len(examples), "ties": len(unused)}


def _mix(path: Path, rounds: Sequence[Path], old: str | None, share: float, seed: int) -> Mapping[str, float]:
    """Pairs of all rounds but for what they held out, and so many old ones that these are `share` of all."""
    fresh: list[Example] = []
    for place in rounds:
        held = {example.prompt for example in read_answers(place / HELD_OUT)}
        file = next(place / name for name in ("people.jsonl", "labelled.jsonl") if (place / name).exists())
        fresh += [example for example in pair_view(read_answers(file))[0] if example.prompt not in held]
    rows, wanted = fresh, 0
    if old is not None and share > 0:
        there, _ = pair_view(load_examples(old).examples)
        wanted = round(share / (1 - share) * len(fresh))
        kept = sorted(random.Random(seed).sample(range(len(there)), min(wanted, len(there))))
        rows = [*fresh, *(there[index] for index in kept)]
        if len(there) < wanted:
            log.warning(f"{old}: {len(there):,} old pairs are fewer than the {wanted:,} that --refresh.share asks for")
    _write(path, rows)
    return {"fresh": len(fresh), "old": len(rows) - len(fresh)}


def _write(path: Path, examples: Sequence[Example]) -> None:
    write_text(path, "".join(json_line(to_row(example)) for example in examples))


def _measure(loop: Loop, name: str, file: Path, source: SourceConfig) -> None:
    """The accuracy of a reward model on the pairs of a file, as `assent score` gives it; NAME is its JSON."""

    def make(path: Path) -> Mapping[str, float]:
        found = _summary(loop, file, source)
        on_main(lambda: write_text(path, found.to_json()))
        share = None if found.comparisons is None else found.comparisons.accuracy
        if share is None:
            raise DataError(f"{file}: nothing compares its answers.")
        return {"accuracy": share.mean, "accuracy_low": share.low, "accuracy_high": share.high, "pairs": share.n}

    loop.stage(name, make, reads=(file, source.source[0]), about="how often the reward model is right about new pairs")


def _summary(loop: Loop, file: Path, source: SourceConfig) -> Summary:
    config = ScoreConfig(**{**vars(source), "file": str(file)})
    examples, left_out = on_main(lambda: answered(config))
    outside = open_source(config, loop.world)
    collected, failures = Collected(), Counter[str]()
    deque(scored_rows(config, outside, examples, collected, failures), maxlen=0)
    return summarised(config, outside, collected, failures, left_out)


def _count(value: float | None) -> int:
    return int(value or 0)


def _percent(value: float | None) -> str:
    return "no part" if value is None else f"{100 * value:.1f} %"
