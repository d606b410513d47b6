"""Writes the assistant world as real files: data sets in the shapes people use, and a small random model folder.

    sft.jsonl                  messages                                       demonstrations of mixed quality
    preferences[_eval].jsonl   prompt, chosen, rejected, margin, annotator    one annotator's noisy label a row
    ratings.jsonl              HelpSteer2 columns, two rows a prompt
    prompts[_eval].jsonl       prompt
    world.json                 what `load_world` needs to grade any answer, and how the files were made
    gold.py                    the gold reward as a function of prompt and answer: --scorer gold.py:gold
    base/                      tokenizer and random Llama

No prompt of an *_eval file occurs in any other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from assent.config import InitConfig
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Pair, Rating, Response
from assent.errors import ConfigError, RunFolderError
from assent.lab.annotators import PANEL, Annotator, labelled
from assent.lab.answers import COMPARISON_MIX, DEMONSTRATION_MIX, draw_style
from assent.lab.world import AssistantWorld, Prompt
from assent.outputs import write_text

# Rows at scale 1.
NUM_SFT, NUM_PAIRS, NUM_RATED, NUM_PROMPTS = 4000, 10000, 500, 2000
NUM_EVAL_PAIRS, NUM_EVAL_PROMPTS = 400, 400

MIN_GAP = 0.8
"""Gold reward between the answers of a pair: people are not asked to tell apart what is as good as equal."""


GOLD = '''"""The gold reward of this world, for --scorer gold.py:gold."""

from pathlib import Path

from assent.lab.world import load_world

WORLD = load_world(Path(__file__).with_name("world.json"))


def gold(prompt, answer):
    """The rubric's overall grade of an answer; `prompt` is its messages."""
    return WORLD.gold(prompt, answer).reward
'''


@dataclass(frozen=True, slots=True)
class WorldPaths:
    """Where `build_world` wrote what."""

    root: Path

    @property
    def sft(self) -> Path:
        return self.root / "sft.jsonl"

    @property
    def gold(self) -> Path:
        return self.root / "gold.py"

    @property
    def preferences(self) -> Path:
        return self.root / "preferences.jsonl"

    @property
    def preferences_eval(self) -> Path:
        return self.root / "preferences_eval.jsonl"

    @property
    def ratings(self) -> Path:
        return self.root / "ratings.jsonl"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts.jsonl"

    @property
    def prompts_eval(self) -> Path:
        return self.root / "prompts_eval.jsonl"

    @property
    def world(self) -> Path:
        return self.root / "world.json"

    @property
    def base(self) -> Path:
        return self.root / "base"


class _PromptSource:
    """Draws prompts of the world that have not been held out."""

    def __init__(self, world: AssistantWorld, rng: np.random.Generator):
        self.world, self.rng = world, rng
        self.held: set[Prompt] = set()

    def draw(self) -> Prompt:
        while (prompt := self.world.draw_prompt(self.rng)) in self.held:
            pass
        return prompt

    def unique(self, count: int) -> list[Prompt]:
        found: dict[Prompt, None] = {}
        while len(found) < count:
            found[self.draw()] = None
        return list(found)

    def hold_out(self, count: int) -> list[Prompt]:
        prompts = self.unique(count)
        self.held.update(prompts)
        return prompts


def _messages(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _write(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(map(json_line, rows)))


def _two_answers(world: AssistantWorld, prompt: Prompt, rng: np.random.Generator) -> Example:
    """The prompt with two answers in styles of the comparison mix, at least `MIN_GAP` apart in gold reward."""
    task = world.lookup(prompt)

    def draw() -> tuple[str, float]:
        text = world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng)
        return text, world.gold(prompt, text).reward

    first, second = draw(), draw()
    while abs(first[1] - second[1]) < MIN_GAP:
        first, second = draw(), draw()
    return Example(prompt, tuple(Response((Message("assistant", text),)) for text, _ in (first, second)))


def preference_examples(
    world: AssistantWorld, prompts: Iterable[Prompt], annotators: Sequence[Annotator], rng: np.random.Generator
) -> list[Example]:
    """For every prompt two different answers and the `Pair` of one annotator drawn from `annotators`."""
    return [
        labelled(world, _two_answers(world, prompt, rng), [annotators[int(rng.integers(len(annotators)))]], rng)
        for prompt in prompts
    ]


def gold_agreement(world: AssistantWorld, examples: Iterable[Example]) -> float:
    """Share of the pair labels whose chosen answer has the higher gold reward; equal rewards are left out."""
    agree = []
    for example in examples:
        rewards = [world.gold(example.prompt, response.text).reward for response in example.responses]
        for pair in example.feedback:
            if isinstance(pair, Pair) and rewards[pair.chosen] != rewards[pair.rejected]:
                agree.append(rewards[pair.chosen] > rewards[pair.rejected])
    return float(np.mean(agree)) if agree else float("nan")


def _preference_row(example: Example) -> dict:
    (pair,) = (feedback for feedback in example.feedback if isinstance(feedback, Pair))
    return {
        "prompt": _messages(example.prompt),
        "chosen": _messages(example.responses[pair.chosen].messages),
        "rejected": _messages(example.responses[pair.rejected].messages),
        "margin": pair.strength,
        "annotator": pair.annotator,
    }


def _rating_rows(world: AssistantWorld, prompt: Prompt, annotator: Annotator, rng: np.random.Generator) -> list[dict]:
    example = labelled(world, _two_answers(world, prompt, rng), [annotator], rng, ratings=True)
    return [
        {
            "prompt": prompt[0].content,
            "response": example.responses[rating.response].text,
            **{name: int(score) for name, score in rating.scores.items()},
        }
        for rating in example.feedback
        if isinstance(rating, Rating)
    ]


def _write_base(out: Path, texts: Iterable[str], seed: int) -> None:
    # imported here: everything else in the lab's assistant world works without torch
    from assent.models.init import random_model, train_tokenizer, write_new_model

    size = InitConfig(data="", out=str(out), vocab_size=768, hidden_size=128, layers=4, heads=4, kv_heads=2, seed=seed)
    tokenizer = train_tokenizer(texts, size.vocab_size)
    write_new_model(tokenizer, random_model(tokenizer, size), out)


def build_world(
    out: str | Path, *, seed: int = 0, scale: float = 1.0, annotators: Sequence[Annotator] = PANEL
) -> WorldPaths:
    """Writes the whole world into the folder `out`, the same bytes for the same arguments.

    `scale` multiplies the number of rows. Errors: `RunFolderError` if `out` holds anything, `ConfigError` for a scale
    that is not positive or an empty panel.
    """
    if not scale > 0 or not annotators:
        raise ConfigError(f"a world needs a scale > 0 and at least one annotator. Got {scale} and {len(annotators)}.")
    paths = WorldPaths(Path(out))
    if paths.root.exists() and (not paths.root.is_dir() or any(paths.root.iterdir())):
        raise RunFolderError(f"{out} exists and is not empty. Choose another folder, or remove it.")
    paths.root.mkdir(parents=True, exist_ok=True)

    def rows(count: int) -> int:
        return max(2, round(count * scale))

    world = AssistantWorld(seed)
    rng = np.random.default_rng([seed, 1])
    source = _PromptSource(world, rng)
    prompts_eval = source.hold_out(rows(NUM_EVAL_PROMPTS))
    pairs_eval = preference_examples(world, source.hold_out(rows(NUM_EVAL_PAIRS)), annotators, rng)
    _write(paths.prompts_eval, ({"prompt": _messages(prompt)} for prompt in prompts_eval))
    _write(paths.preferences_eval, map(_preference_row, pairs_eval))

    demonstrations = []
    for _ in range(rows(NUM_SFT)):
        prompt = source.draw()
        style = draw_style(world.lookup(prompt), DEMONSTRATION_MIX, rng)
        demonstrations.append((*prompt, Message("assistant", world.respond(prompt, style, rng))))
    _write(paths.sft, ({"messages": _messages(messages)} for messages in demonstrations))

    pairs = preference_examples(world, [source.draw() for _ in range(rows(NUM_PAIRS))], annotators, rng)
    _write(paths.preferences, map(_preference_row, pairs))
    _write(paths.prompts, ({"prompt": _messages(prompt)} for prompt in source.unique(rows(NUM_PROMPTS))))

    # HelpSteer2 has the prompt as one string, so the rated prompts are those of one message
    rated = [prompt for prompt in source.unique(3 * rows(NUM_RATED)) if len(prompt) == 1][: rows(NUM_RATED)]
    _write(
        paths.ratings,
        (row for p in rated for row in _rating_rows(world, p, annotators[int(rng.integers(len(annotators)))], rng)),
    )
    world.save(
        paths.world,
        scale=scale,
        annotators=[asdict(annotator) for annotator in annotators],
        gold_agreement=round(gold_agreement(world, (*pairs, *pairs_eval)), 4),
    )
    write_text(paths.gold, GOLD)
    # role names are part of what the template writes
    texts = [text for messages in demonstrations for m in messages for text in (m.role, m.content)]
    texts += [response.text for example in pairs for response in example.responses]
    _write_base(paths.base, texts, seed)
    return paths
