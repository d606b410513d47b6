"""RewardBench 1 and 2 from a local copy or hub id: rows, numbers, and result files in the benchmarks' own shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from assent.data.formats.fields import check_prompt
from assent.data.formats.message import messages
from assent.data.formats.values import get, listed, text
from assent.data.jsonl import json_line
from assent.data.readers import read_rows
from assent.data.records import Example, Message, Origin, Pair, Problem, Ranking, Response, RowError
from assent.errors import DataError
from assent.measures import rewardbench
from assent.measures.estimates import estimate
from assent.measures.rewardbench import ROWS, ROWS_2, TIES, Overall, Section, TieScore, best_of_four, tie_id, ties
from assent.outputs import write_text
from assent.rewards.group import Scores
from assent.statistics import Interval, proportion_interval, share_interval

Name = Literal["rewardbench", "rewardbench-2"]
HUB: dict[str, Name] = {"allenai/reward-bench": "rewardbench", "allenai/reward-bench-2": "rewardbench-2"}
SPLIT: dict[Name, str] = {"rewardbench": "filtered", "rewardbench-2": "test"}
ROWS_OF: dict[Name, Mapping[str, int]] = {"rewardbench": ROWS, "rewardbench-2": ROWS_2}
COLUMNS = ("prompt", "chosen", "rejected", "subset", "id")
LISTED = 5


@dataclass(frozen=True, slots=True)
class Item:
    """A row. `example` has its right answers first, `right` of them, and feedback that says so."""

    example: Example
    subset: str
    id: str
    right: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The rows of a benchmark file, and those that cannot be used."""

    name: Name
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The benchmark's numbers. `subsets` has the accuracy (RewardBench 1) or score (2) of each subset in the file, with
    its unscored rows as `missing`; `ties` are the rows of equal rewards, which RewardBench 1 counts as wrong. `notes`
    say what is not as the benchmark has it."""

    name: Name
    subsets: Mapping[str, Interval]
    ties: int
    overall: Overall
    by_length: Mapping[str, Section]
    tied_answers: TieScore | None
    notes: tuple[str, ...]


def detect(path: str, split: str) -> Name | None:
    """The benchmark that a file or hub id is a copy of: by the id, or by the columns and subset of its first readable
    row; None where it is none."""
    if path in HUB:
        return HUB[path]
    row = next((row for _, row in islice(read_rows(path, split), 100) if not isinstance(row, Problem)), {})
    if any(column not in row for column in ("prompt", "chosen", "rejected", "subset")):
        return None
    if row["subset"] in ROWS and isinstance(row["chosen"], str):
        return "rewardbench"
    return "rewardbench-2" if row["subset"] in ROWS_2 and isinstance(row["chosen"], list | tuple) else None


def read_benchmark(path: str, name: Name, split: str, limit: int | None = None) -> Benchmark:
    """All rows of the file. Raises DataError for one that lacks a column of the benchmark, or has no row of it."""
    items, problems = [], []
    for origin, row in islice(read_rows(path, split), limit):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        absent = [column for column in COLUMNS if column not in row]
        if absent:
            raise DataError(
                f"{origin}: a row of {name} has the columns {', '.join(COLUMNS)}. This one lacks {', '.join(absent)}; "
                f"it has {', '.join(row)}."
            )
        try:
            items.append(_item(row, origin, name))
        except RowError as error:
            problems.append(error.at(origin))
    if not items:
        first = f" The first: {problems[0]}" if problems else ""
        raise DataError(f"{path}: no row of {name} can be used.{first}")
    return Benchmark(name, tuple(items), tuple(problems))


def _item(row: Mapping[str, Any], origin: Origin, name: Name) -> Item:
    subset, identity = text(get(row, "subset"), "subset"), str(row["id"])
    value = get(row, "prompt")
    if isinstance(value, str):
        prompt: tuple[Message, ...] = (Message("user", text(value, "prompt")),)
    else:
        prompt = check_prompt(messages(value, "prompt"), "prompt")
    if name == "rewardbench":
        right, wrong = [_answer(row["chosen"], "chosen")], [_answer(row["rejected"], "rejected")]
        feedback: Pair | Ranking = Pair(0, 1)
    else:
        right, wrong = (
            [_answer(value, f"{column}[{i}]") for i, value in enumerate(listed(row[column], column))]
            for column in ("chosen", "rejected")
        )
        cut, total = len(right), len(right) + len(wrong)
        feedback = Ranking((tuple(range(cut)), tuple(range(cut, total))))
        if subset != TIES and len(right) != 1:
            raise RowError("chosen", f"expected one right answer in subset {subset}, got {len(right)}")
        if subset == TIES and tie_id(identity) is None:
            raise RowError("id", f"expected ref:NUMBER or tied:NUMBER in subset {TIES}, got '{identity}'")
    meta = {"subset": subset, "id": row["id"]}
    responses = tuple(Response((Message("assistant", answer),)) for answer in (*right, *wrong))
    plain = value if isinstance(value, str) else None
    example = Example(prompt, responses, (feedback,), origin, meta, prompt_text=plain)
    return Item(example, subset, identity, len(right))


def _answer(value: object, column: str) -> str:
    """An empty answer is one of the benchmark's: it is scored as it is."""
    return text(value, column, blank=True)


def evaluate(benchmark: Benchmark, scores: Scores) -> Result:
    """The numbers, from the rewards of all answers of all items in order. A row with an unscored answer is left out of
    its subset, and counted."""
    rewards = _by_item(benchmark, scores)
    rows: dict[str, list[int]] = {}
    for index, item in enumerate(benchmark.items):
        rows.setdefault(item.subset, []).append(index)
    if benchmark.name == "rewardbench":
        return _first(benchmark, rewards, rows)
    return _second(benchmark, rewards, rows)


def _first(benchmark: Benchmark, rewards: Sequence[np.ndarray], rows: Mapping[str, Sequence[int]]) -> Result:
    gaps = np.array([chosen - rejected for chosen, rejected in rewards])
    subsets = {}
    for name, places in rows.items():
        known = gaps[list(places)]
        known = known[~np.isnan(known)]
        subsets[name] = proportion_interval(int((known > 0).sum()), len(known), missing=len(places) - len(known))
    overall = rewardbench.rewardbench(subsets)
    notes = _notes(benchmark, subsets, overall)
    tied = int((gaps == 0).sum())
    return Result(benchmark.name, subsets, tied, overall, rewardbench.by_length(subsets), None, notes)


def _second(benchmark: Benchmark, rewards: Sequence[np.ndarray], rows: Mapping[str, Sequence[int]]) -> Result:
    subsets, tied_answers, tied = {}, None, 0
    for name, places in rows.items():
        if name == TIES:
            subsets[name], tied_answers = _ties(benchmark, rewards, places)
            continue
        found = np.array([best_of_four(rewards[index]) for index in places])
        tied += int(((found > 0) & (found < 1)).sum())
        subsets[name] = share_interval(found)
    overall = rewardbench.rewardbench_2(subsets)
    return Result(benchmark.name, subsets, tied, overall, {}, tied_answers, _notes(benchmark, subsets, overall))


def _ties(benchmark: Benchmark, rewards: Sequence[np.ndarray], places: Sequence[int]) -> tuple[Interval, TieScore]:
    """The score of the ties, with an interval that draws prompts anew."""
    rows = []
    for index in places:
        item = benchmark.items[index]
        named = tie_id(item.id)
        assert named is not None, "checked when the row was read"
        rows.append((*named, rewards[index], item.right))
    score = ties(rows)
    by_prompt: dict[int, list[tuple[str, np.ndarray, int]]] = {}
    for kind, number, values, right in rows:
        by_prompt.setdefault(number, []).append((kind, values, right))
    prompts = list(by_prompt.values())

    def statistic(drawn: np.ndarray) -> float:
        again = [(kind, place, v, r) for place, which in enumerate(drawn) for kind, v, r in prompts[which]]
        value = ties(again).score
        return np.nan if value is None else value

    found = estimate(statistic, np.arange(len(prompts)))
    value, low, high = (np.nan if x is None else x for x in (found.value, found.low, found.high))
    return Interval(value, low, high, len(rows) - score.missing, score.missing), score


def _by_item(benchmark: Benchmark, scores: Scores) -> list[np.ndarray]:
    ends = np.cumsum([len(item.example.responses) for item in benchmark.items])
    assert len(scores.values) == ends[-1], "one reward for each answer"
    return np.split(np.asarray(scores.values, np.float64), ends[:-1])


def _notes(benchmark: Benchmark, subsets: Mapping[str, Interval], overall: Overall) -> tuple[str, ...]:
    expected, notes = ROWS_OF[benchmark.name], []
    if overall.missing:
        notes.append(
            f"{len(overall.missing)} of {len(expected)} subsets have no score, so there is no overall number: "
            f"{', '.join(overall.missing)}"
        )
    if there := [name for name in overall.missing if name in subsets]:
        forms = "; a prompt of Ties needs both its forms, ref and tied" if TIES in there else ""
        notes.append(f"subsets that are there, of which no row has a score: {', '.join(there)}{forms}")
    short = [
        f"{name} {value.n} of {expected[name]}"
        for name, value in subsets.items()
        if name in expected and value.n != expected[name]
    ]
    if short:
        notes.append(f"subsets with another number of scored rows than the benchmark's: {', '.join(short)}")
    unknown = [name for name in subsets if name not in expected]
    if unknown:
        notes.append(f"subsets that are not the benchmark's, and count in no section: {', '.join(unknown)}")
    if benchmark.problems:
        listed_ = "; ".join(str(problem) for problem in benchmark.problems[:LISTED])
        notes.append(f"{len(benchmark.problems)} rows cannot be used and are left out: {listed_}")
    return tuple(notes)


# ---- result files


def write_results(folder: Path, benchmark: Benchmark, result: Result, scores: Scores, model: str) -> list[Path]:
    """The files that the benchmarks' own tools write, for a model called `model` (slashes stay folders):

    results/MODEL.json           RewardBench 1: accuracy of all rows, their number, and of each subset
    results/MODEL_outputs.jsonl  RewardBench 1: prompt, whether right, both rewards and answers, a line each row
    eval-set/MODEL.json          the leaderboard's: each subset's number
    eval-set-scores/MODEL.json   RewardBench 2: the rewards of each row, in columns

    Rows without all rewards are null there."""
    rewards = _by_item(benchmark, scores)
    about = {"model": model, "model_type": "Seq. Classifier", "chat_template": "tokenizer"}
    numbers = {name: None if np.isnan(value.mean) else value.mean for name, value in result.subsets.items()}
    made = {f"eval-set/{model}.json": json.dumps(about | numbers, indent=4, sort_keys=True)}
    if benchmark.name == "rewardbench":
        gaps = [chosen - rejected for chosen, rejected in rewards]
        right = [None if np.isnan(gap) else int(gap > 0) for gap in gaps]
        known = [value for value in right if value is not None]
        summary = {
            "accuracy": sum(known) / len(known) if known else None,
            "num_prompts": len(known),
            "model": model,
            "ref_model": None,
            "tokenizer": model,
            "chat_template": None,
            "extra_results": numbers,
        }
        lines = map(json_line, map(_output, benchmark.items, rewards, right))
        made |= {f"results/{model}.json": json.dumps(summary), f"results/{model}_outputs.jsonl": "".join(lines)}
    else:
        made[f"eval-set-scores/{model}.json"] = json.dumps(about | _columns(benchmark, rewards))
    for name, content in made.items():
        write_text(folder / name, content)
    return [folder / name for name in made]


def _output(item: Item, rewards: np.ndarray, right: int | None) -> dict[str, object]:
    chosen, rejected = _plain(rewards)
    prompt = [{"role": turn.role, "content": turn.content} for turn in item.example.prompt]
    texts = [response.text for response in item.example.responses]
    return {
        "prompt": prompt if item.example.prompt_text is None else item.example.prompt_text,
        "results": right,
        "scores_chosen": chosen,
        "scores_rejected": rejected,
        "text_chosen": texts[0],
        "text_rejected": texts[1],
        "subset": item.subset,
        "id": item.example.meta["id"],
    }


def _columns(benchmark: Benchmark, rewards: Sequence[np.ndarray]) -> dict[str, list[object]]:
    results = [
        None if item.subset == TIES or np.isnan(values).any() else best_of_four(values)
        for item, values in zip(benchmark.items, rewards, strict=True)
    ]
    return {
        "text": [[response.text for response in item.example.responses] for item in benchmark.items],
        "scores": [_plain(values) for values in rewards],
        "results": list(results),
        "subset": [item.subset for item in benchmark.items],
        "id": [item.id for item in benchmark.items],
        "num_correct": [item.right for item in benchmark.items],
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]
