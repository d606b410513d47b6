"""How well `assent reward-attributes` recovers the gold attributes of the assistant world from clean ratings:

    python -m benchmarks.reward_attributes --out FOLDER
    python -m benchmarks.reward_attributes --out FOLDER --demo runs/demo --prompts 2000 --epochs 6 --lr 1e-3 --batch 8

The first begins with a random model, the second with the SFT model of `make demo`, which has been told the facts. Every
answer is rated by the gold attributes themselves. Held out are prompts that no rating is about, with answers of
their own; what they ask is known from others, since a model that begins at random cannot know a fact that it was never
told. Beside the model stands what could be known without facts: the mean rating of answers made of the same kinds of
sentences, where it is not looked at whether a claim is true. The numbers stand in docs/reward-models.md.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from assent.algorithms.reward.attributes import train_attributes
from assent.config import AttributesConfig, ModelConfig, OptimConfig
from assent.data.chat import Chat
from assent.data.formats.native import to_row
from assent.data.records import Example, Message, Rating, Response
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.rubric import WEIGHTS, read
from assent.lab.world import AssistantWorld, Prompt, load_world
from assent.models.annotate import BatchColumns, columns_of
from assent.models.heads import load_score_model
from assent.models.loading import load_tokenizer, quiet_transformers
from benchmarks.reward_lab import ONE, SEEDS, Drawn, base_model, options, over_seeds, seconds, write_rows

ANSWERS, HELD = 8, 100
CLAIMS = ("full", "short", "false", "related", "aside", "mention")
"""Kinds of sentences that only facts tell apart."""


def answered(world: AssistantWorld, prompt: Prompt, rng: np.random.Generator) -> Example:
    """The prompt with different answers, each rated by its gold attributes."""
    task, texts = world.lookup(prompt), dict[str, None]()
    while len(texts) < ANSWERS:
        texts[world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng)] = None
    ratings = tuple(Rating(i, world.gold(prompt, text).attributes(), "gold") for i, text in enumerate(texts))
    return Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts), ratings)


def draw(world: AssistantWorld, about: Sequence[str], rng: np.random.Generator) -> Prompt:
    """A prompt; questions are about entities of these kinds."""
    prompt = world.draw_prompt(rng)
    if not about or world.lookup(prompt).fact is None:
        return prompt
    while (fact := world.lookup(prompt).fact) is None or world.knowledge.kind[fact.entity] not in about:
        prompt = world.draw_prompt(rng)
    return prompt


def gold(examples: Sequence[Example]) -> np.ndarray:
    """[S, K] the ratings."""
    return np.array([[rating.scores[name] for name in WEIGHTS] for each in examples for rating in each.feedback])


def form(world: AssistantWorld, prompt: Prompt, text: str) -> tuple[object, ...]:
    """What can be said of an answer by someone who knows no facts."""
    task = world.lookup(prompt)
    counts = asdict(read(world.knowledge, task, text))
    claims = sum(counts.pop(name) for name in CLAIMS)
    return (task.brief, task.fact is None, claims, *counts.values())


def without_facts(world: AssistantWorld, train: Sequence[Example], held: Sequence[Example]) -> np.ndarray:
    """[S, K] the mean ratings of the answers of the same form."""

    def forms(examples: Sequence[Example]) -> list[tuple[object, ...]]:
        return [form(world, each.prompt, one.text) for each in examples for one in each.responses]

    rated = defaultdict(list)
    for key, row in zip(forms(train), gold(train), strict=True):
        rated[key].append(row)
    usual = gold(train).mean(0)
    return np.array([np.mean(rated[key], 0) if key in rated else usual for key in forms(held)])


def outputs(run: Path, examples: Sequence[Example]) -> np.ndarray:
    """[S, K] of the model, in the order of `WEIGHTS`."""
    config = ModelConfig(str(run / "model"), precision="fp32")
    tokenizer = load_tokenizer(config)
    scorer = load_score_model(config, tokenizer, max_length=192, trainable=False, new_head=False)
    trees, _ = Chat(tokenizer).trees(list(examples), 192)
    found = columns_of(
        trees,
        lambda batch: BatchColumns(per_response={"outputs": scorer(batch, batch.last)}),
        micro_tokens=8192,
        flat=False,
        world=ONE,
    )
    return found.per_response["outputs"][:, [scorer.rule.names.index(name) for name in WEIGHTS]]


def gamma(found: np.ndarray, truth: np.ndarray) -> float:
    """Goodman and Kruskal's: of all pairs whose ratings differ, the share in order less the share out of it."""
    one, other = np.triu_indices(len(truth), 1)
    order = np.sign(truth[one] - truth[other])
    return float((order * np.sign(found[one] - found[other]))[order != 0].mean())


def ceiling(truth: np.ndarray) -> float:
    """Spearman's correlation of ratings with numbers that are in their order and have no ties: sqrt(1 - sum p^3), with
    p the shares of the equal ratings."""
    shares = np.unique(truth, return_counts=True)[1] / len(truth)
    return float(np.sqrt(1 - (shares**3).sum()))


def one_seed(seed: int, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The numbers of each attribute."""
    out, about, rng = given.out, given.about, np.random.default_rng([seed, 9])
    world = AssistantWorld(0) if given.demo is None else load_world(given.demo / "world")
    held: dict[Prompt, Example] = {}
    while len(held) < HELD:
        prompt = draw(world, about, rng)
        held[prompt] = answered(world, prompt, rng)
    train: list[Example] = []
    while len(train) < given.prompts:
        if (prompt := draw(world, about, rng)) not in held:
            train.append(answered(world, prompt, rng))
    data = write_rows(out / f"ratings-{seed}.jsonl", [to_row(each) for each in train])
    if given.demo is None:
        base = base_model(out / f"base-{seed}", [Drawn(each, ()) for each in train], seed)
    else:
        base = given.demo / "sft" / "model"
    how = {"batch_size": given.batch, "epochs": given.epochs, "log_every": 20}
    config = AttributesConfig(
        **options(base, data, out / f"run-{seed}", seed, **how) | {"optim": OptimConfig(lr=given.lr)}
    )
    taken = seconds(train_attributes, config)
    examples = list(held.values())
    truth, found, blind = gold(examples), outputs(out / f"run-{seed}", examples), without_facts(world, train, examples)
    return {
        name: {
            "gamma": gamma(found[:, k], truth[:, k]),
            "gamma without facts": gamma(blind[:, k], truth[:, k]),
            "Spearman": float(spearmanr(found[:, k], truth[:, k])[0]),
            "its ceiling": ceiling(truth[:, k]),
            "CPU seconds": taken,
        }
        for k, name in enumerate(WEIGHTS)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="of `assent demo`: its world and SFT model")
    parser.add_argument("--about", nargs="*", default=[], metavar="KIND", help="country, animal, ...; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    quiet_transformers()
    given.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in given.seeds:
        path = given.out / f"seed-{seed}.json"
        if not path.is_file():
            path.write_text(json.dumps(one_seed(seed, given)))
        found.append(json.loads(path.read_text()))
        print(seed, found[-1], flush=True)
    for name in WEIGHTS:
        numbers = {key: over_seeds([seed[name][key] for seed in found]) for key in found[0][name]}
        print(name, "; ".join("{} {:.3f} ± {:.3f}".format(key, *value) for key, value in numbers.items()))


if __name__ == "__main__":
    main()
