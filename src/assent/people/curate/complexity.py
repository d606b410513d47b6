"""How complex prompts are: rated by a judge, or by features of their text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from assent import distributed
from assent.config import JudgeConfig
from assent.config.curate import CurateConfig
from assent.config.judge_relations import unread
from assent.config.sections import keywords
from assent.data.records import Example, Message, Response
from assent.distributed import World
from assent.errors import ConfigError, DataError
from assent.measures.texts import list_items
from assent.people import asked
from assent.people.asked import Cost
from assent.people.curate.texts import plain_words, user_text
from assent.rewards.group import Group
from assent.rewards.judge.build import judge_reward
from assent.rewards.judge.openai import OpenAIJudge, tried
from assent.rewards.judge.prompt import Prompt, read_prompt
from assent.rewards.judge.source import JudgeReward, check_no_reference
from assent.rewards.scoring import scored_chunks
from assent.rewards.shared import Shared
from assent.train.progress import ProgressDisplay

FILE = str(Path(__file__).with_name("complexity.yaml"))
FIRST = "(this is the first message)"
"""What the judge is shown in place of earlier turns where there are none."""
FEATURES = "features"
READ = 20_000
"""Characters of a prompt whose features count."""
_CONDITIONS = re.compile(r"\d+(?:[.,]\d+)*|[,;:?()]")


@dataclass(frozen=True)
class Complexity:
    """`values` of all rows, None for those that were not rated, with why in `unrated`. `by` is the judge's name, or
    `FEATURES`."""

    values: list[float | None]
    by: str = FEATURES
    unrated: Mapping[str, int] = field(default_factory=dict)
    cost: Cost | None = None


# ---- by features


def by_features(examples: Sequence[Example]) -> Complexity:
    """The mean of three ranks among all rows, each from 0 to 1: by words, by marks of conditions (numbers, list items,
    commas, brackets, questions), and by how rare the words are on average. It compares prompts of one file; it is no
    rating."""
    texts = [user_text(example)[:READ] for example in examples]
    words = [plain_words(text) for text in texts]
    texts_with = Counter(word for each in words for word in set(each))
    rare = [np.mean([math.log(len(texts) / texts_with[w]) for w in set(each)]) if each else 0.0 for each in words]
    marks = [len(_CONDITIONS.findall(text)) + list_items(text) for text in texts]
    ranked = [ranks(np.array(each, float)) for each in ([len(each) for each in words], marks, rare)]
    return Complexity([round(float(value), 4) for value in np.mean(ranked, axis=0)])


def ranks(values: np.ndarray) -> np.ndarray:
    """The share of values that are lower, and half of those that are equal, [N]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return np.asarray((below[inverse] + 0.5 * counts[inverse]) / max(len(values), 1))


# ---- by a judge


def check_complexity(config: CurateConfig) -> Prompt | None:
    """What the judge is asked. Raises ConfigError, before any work, for options that do not fit."""
    section = config.complexity
    if section.source is None:
        if section.prompt is not None:
            raise ConfigError("--complexity.prompt is about a judge. Give --complexity.source openai=URL.")
        if problem := unread(config.judge, [], "--complexity.source openai=URL", "--complexity.source judge=FOLDER"):
            raise ConfigError(problem)
        return None
    sources = asked.named([section.source], config.judge, "--complexity.source")
    words = ("--complexity.source openai=URL", "--complexity.source judge=FOLDER")
    if problem := unread(config.judge, [*sources.values()], *words):
        raise ConfigError(problem)
    prompt = read_prompt(section.prompt or FILE)
    check_no_reference(prompt, section.prompt or FILE)
    if prompt.mode not in ("rating", "criteria") or prompt.columns:
        raise ConfigError(
            f"--complexity.prompt {section.prompt}: expected mode rating or criteria, without columns. "
            "The request stands in the place of {{ answer }}, earlier turns in that of {{ prompt }}."
        )
    return prompt


class Rater:
    """The judge of `config`. Raises ConfigError and ModelError, and UserError where a server does not answer."""

    def __init__(self, config: CurateConfig, world: World) -> None:
        assert config.complexity.source is not None
        ((self.name, spec),) = asked.named([config.complexity.source], config.judge, "--complexity.source").items()
        judged_by = JudgeConfig(**keywords(config.judge), prompt=config.complexity.prompt or FILE)
        place = asked.place_of(config, config.judge.engine, world)
        made = judge_reward(spec, self.name, judged_by, config.remote, place, "--complexity.source", forgiving=True)
        self._source: JudgeReward = made
        made.asker.check()
        if isinstance(made.judge, OpenAIJudge):
            request = as_request(Example((Message("user", "What is two and two?"),)))
            group = Group(request, texts=(request.responses[0].text,), finished=(True,), lengths=(1,))
            distributed.on_main(partial(tried, "--complexity.source", made.judge, partial(_try, made, group)))
        self._shared = Shared(made, world)

    def rate(self, examples: Sequence[Example]) -> Complexity:
        """Raises DataError where no prompt was rated at all."""
        values: list[float | None] = []
        unrated, noted = Counter[str](), dict[str, list[float]]()
        requests = [as_request(example) for example in examples]
        with ProgressDisplay(total=len(requests), label=f"complexity: {self.name}") as progress:
            for _, scores in scored_chunks(self._shared, requests, None, max_length=1):
                for metric, numbers in scores.metrics.items():
                    noted.setdefault(metric, []).extend(numbers)
                values += [None if math.isnan(value) else float(value) for value in scores.values]
                unrated.update(why for why in scores.reasons() if why is not None)
                progress.update(len(values), f"{sum(value is not None for value in values):,} rated")
        cost = asked.cost_of(self._source.judge, noted)
        if examples and not any(value is not None for value in values):
            raise DataError(
                f"--complexity.source: none of {len(values)} prompts was rated. Mostly: "
                f"{unrated.most_common(1)[0][0]}. "
                "Without --complexity.source, features of the text say how complex they are."
            )
        return Complexity(values, self.name, dict(unrated), cost)


def _try(source: JudgeReward, group: Group) -> object:
    """What the judge is tried with; its answer stays in its cache."""
    return source.score([group])


def as_request(example: Example) -> Example:
    """The last turn in the place of an answer, and earlier ones in that of the prompt."""
    earlier = example.prompt[:-1] or (Message("user", FIRST),)
    last = replace(example.prompt[-1], role="assistant")
    return Example(earlier, (Response((last,)),), origin=example.origin)
