"""The gate learns what matters to whom, in the assistant world, on three seeds: prompts of different kinds are judged
by different attributes, or annotators have a taste for length. The backbone is a small random model and its heads are
fitted to ratings in closed form, so all of it takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent.cli import main
from assent.config import InitConfig
from assent.data.formats.native import to_row
from assent.data.records import Example, Message, Pair, Rating, Response
from assent.lab.annotators import Annotator, labelled
from assent.lab.answers import draw_style
from assent.lab.world import AssistantWorld, Prompt
from assent.models.init import random_model, train_tokenizer, write_new_model
from assent.statistics import Interval, proportion_interval

SEEDS = (0, 1, 2)
KINDS = ("question", "brief", "harmful")
DIFFERENT = {"question": {"complexity": 1.0}, "brief": {"coherence": 1.0}, "harmful": {"coherence": 1.0}}
"""Curt answers are coherent and simple, rambling ones are neither: which is better depends on the prompt."""
SAME = {kind: {"coherence": 1.0} for kind in KINDS}
STYLES = ({"curt": 0.4, "rambling": 0.4, "rude": 0.1, "full": 0.1},) * 2
BIAS = 0.06
"""What a word is worth to annotators with a taste for length; about a sixteenth of a point of coherence."""
TRAIN, EVAL, RATED = 120, 60, 60
"""Prompts of each kind."""


def prompts(world: AssistantWorld, rng: np.random.Generator, each: int, but: Sequence[Prompt] = ()) -> list[Prompt]:
    """As many of each kind; none of `but`."""
    found: dict[str, list[Prompt]] = {kind: [] for kind in KINDS}
    while min(map(len, found.values())) < each:
        prompt = world.draw_prompt(rng)
        kind = found[world.kind(prompt)]
        if len(kind) < each and prompt not in but:
            kind.append(prompt)
    return [prompt for kind in found.values() for prompt in kind]


def answered(world: AssistantWorld, prompt: Prompt, judge: Annotator, rng: np.random.Generator, gap: float) -> Example:
    """The prompt with two answers that are worth different amounts to the judge."""
    kind = world.kind(prompt)
    while True:
        texts = [world.respond(prompt, draw_style(world.lookup(prompt), STYLES, rng), rng) for _ in range(2)]
        first, second = (judge.worth(world.gold(prompt, text), kind) for text in texts)
        if texts[0] != texts[1] and abs(first - second) >= gap:
            return Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts))


def write(path: Path, examples: Sequence[Example]) -> None:
    path.write_text("".join(json.dumps(to_row(example)) + "\n" for example in examples))


def build(root: Path, seed: int) -> None:
    """ratings.jsonl, a base model, and pairs: by different tastes, by one taste with a length bias, and held out each
    without it."""
    world, rng = AssistantWorld(seed), np.random.default_rng(seed)
    held = prompts(world, rng, EVAL)
    train, rated = prompts(world, rng, TRAIN, held), prompts(world, rng, RATED, held)
    careful = Annotator("ada", temperature=0.1)
    ratings = []
    for prompt in rated:
        example = labelled(world, answered(world, prompt, careful, rng, 0.0), [careful], rng, ratings=True)
        scores = [item for item in example.feedback if isinstance(item, Rating)]
        # every answer of these styles is correct: a constant attribute, which would be refused
        kept = [replace(r, scores={k: v for k, v in r.scores.items() if k != "correctness"}) for r in scores]
        ratings.append(replace(example, feedback=tuple(kept)))
    write(root / "ratings.jsonl", ratings)
    texts = [m.content for example in ratings for m in (*example.prompt, example.responses[0].messages[0])]
    for name, tastes, bias in (("different", DIFFERENT, 0.0), ("biased", SAME, BIAS)):
        fair = Annotator("zoe", temperature=0.3, tastes=tastes)
        for part, which, judge in (("", train, replace(fair, length_bias=bias)), ("_eval", held, fair)):
            pairs = [labelled(world, answered(world, p, fair, rng, 0.5), [judge], rng) for p in which]
            write(root / f"{name}{part}.jsonl", pairs)
            assert all(isinstance(item, Pair) for example in pairs for item in example.feedback)
    size = InitConfig(
        data="", out="", vocab_size=600, hidden_size=64, layers=2, heads=4, kv_heads=2, context=512, seed=seed
    )
    tokenizer = train_tokenizer([*texts, "user", "assistant", "system"], size.vocab_size)
    write_new_model(tokenizer, random_model(tokenizer, size), root / "base")


def trained(root: Path, data: str, out: str, *more: str) -> Mapping[str, float]:
    """The held-out numbers of a run."""
    words = f"""reward-gate --model.path {root}/base --model.precision fp32 --gate.ratings {root}/ratings.jsonl
        --data.train {root}/{data}.jsonl --data.eval {root}/{data}_eval.jsonl --data.max_length 512 --out {root}/{out}
        --gate.layers 1 --gate.width 64 --gate.temperature 1 --optim.lr 1e-2 --train.max_steps 100
        --train.batch_size 256 --train.threads 1 --train.log_every 100"""
    assert main([*words.split(), *more]) == 0
    return json.loads((root / out / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module", params=SEEDS)
def root(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(f"seed{request.param}")
    build(folder, request.param)
    return folder


FOUND: dict[str, list[Mapping[str, float]]] = {"different": [], "biased": [], "decorrelated": []}


def test_runs(root: Path) -> None:
    """What the tests below look at, all seeds together."""
    FOUND["different"].append(trained(root, "different", "different-run", "--gate.no_decorrelate"))
    FOUND["biased"].append(trained(root, "biased", "biased-run", "--gate.no_decorrelate"))
    FOUND["decorrelated"].append(trained(root, "biased", "decorrelated-run"))


def pooled(which: str, name: str) -> Interval:
    """Held-out accuracy over all seeds."""
    size = 3 * EVAL
    right = sum(round(found[f"eval/{name}"] * size) for found in FOUND[which])
    return proportion_interval(right, size * len(SEEDS))


def test_the_gate_beats_the_best_fixed_weights_where_kinds_of_prompts_differ() -> None:
    gate, fixed, uniform = (pooled("different", f"accuracy{name}") for name in ("", "_fixed", "_uniform"))
    print("gate, fixed, uniform", gate, fixed, uniform)
    assert gate.low > fixed.high + 0.05 and gate.low > uniform.high, (gate, fixed, uniform)


def test_length_is_taken_out_of_a_gate_that_annotators_bias() -> None:
    """Held-out labels are those without the bias."""
    plain = [found["eval/length_relation"] for found in FOUND["biased"]]
    without = [found["eval/length_relation"] for found in FOUND["decorrelated"]]
    accuracy = pooled("biased", "accuracy"), pooled("decorrelated", "accuracy")
    print("length relation", plain, without, "accuracy", accuracy)
    assert all(after < before - 0.3 for before, after in zip(plain, without, strict=True)), (plain, without)
    assert accuracy[1].mean > accuracy[0].mean - 0.05, accuracy
