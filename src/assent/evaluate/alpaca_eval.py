"""Files of the package alpaca_eval: comparisons as its annotations, answers as its model outputs, and its own rows for
the length-controlled win rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from assent.data.formats import message_row
from assent.data.readers import read_rows
from assent.data.records import Problem
from assent.errors import DataError
from assent.evaluate.prompts import PromptSet
from assent.measures.answers import Answers
from assent.measures.gamed import Instructions, gamed_rows
from assent.measures.shapes import Duels
from assent.outputs import write_text

OUTPUTS, ANNOTATIONS = "model_outputs", "annotations"
"""The folders in an evaluation's: NAME.json of each policy; SOURCE/NAME.json of each policy's comparisons."""
WANTED = "Expected df_gamed.csv of the hub's data set tatsu-lab/alpaca_eval"


def with_gamed(prompts: PromptSet, file: str, limit: int | None) -> PromptSet:
    """The prompts with AlpacaEval's rows of them. Its instructions are numbered by their places, from 0, in its
    reference outputs. Raises DataError for a file that is another, or whose instructions are not these prompts."""
    rows = []
    for _, row in read_rows(file):
        if isinstance(row, Problem):
            raise DataError(f"--gamed {file}: {row} {WANTED}.")
        rows.append(row)
    try:
        gamed = gamed_rows(rows)
    except DataError as error:
        raise DataError(f"--gamed {file}: {error}. {WANTED}.") from None
    origins = [example.origin for example in prompts.examples]
    index = np.array([origin.row - 1 for origin in origins], np.int64)
    known = np.unique(gamed.index)
    same = len({origin.file for origin in origins}) == 1 and np.isin(index, known).all()
    if not same or (limit is None and index.max() != known.max()):
        raise DataError(
            f"--gamed {file}: its rows are of {len(known)} instructions, numbered {known[0]} to {known[-1]} by their "
            f"places in AlpacaEval's reference outputs. {prompts.file} has {len(prompts)} prompts, in places "
            f"{index.min()} to {index.max()}. Give --prompts alpaca_eval_gpt4_baseline.json of that data set."
        )
    return replace(prompts, columns=replace(prompts.columns, alpaca_eval=Instructions(gamed, index)))


def write_model_outputs(answers: Answers, prompts: PromptSet, folder: Path) -> None:
    """Each prompt's first answer, with its last user turn as instruction."""
    seen: set[int] = set()
    rows = []
    for place, text in zip(answers.prompt.tolist(), answers.texts, strict=True):
        if place not in seen:
            seen.add(place)
            rows.append({**_asked(prompts, place), "output": text, "generator": answers.policy})
    _write(folder / OUTPUTS / file_name(answers.policy), rows)


def write_annotations(duels: Mapping[str, Duels], prompts: PromptSet, folder: Path) -> None:
    """Every comparison of one policy with the baseline, by each source of verdicts: output_1 is the baseline's, and
    `preference` goes from 1 (that one is better) to 2. `index` is the instruction that its length-controlled win rate
    asks for. Failures are not among them: that rate would average a predicted verdict for each, and ours does not."""
    for source, found in duels.items():
        _write(folder / ANNOTATIONS / _safe(source) / file_name(found.ours.policy), _annotations(found, prompts))


def _annotations(duels: Duels, prompts: PromptSet) -> list[dict[str, object]]:
    known = prompts.columns.alpaca_eval
    return [
        {
            **_asked(prompts, place),
            "output_1": duels.theirs.texts[theirs],
            "generator_1": duels.theirs.policy,
            "output_2": duels.ours.texts[ours],
            "generator_2": duels.ours.policy,
            "dataset": str(prompts.examples[place].meta.get("dataset") or ""),
            "annotator": duels.by,
            "preference": 1 + outcome,
            "raw_completion": None,
            "index": place if known is None else int(known.index[place]),
        }
        for place, (ours, theirs), outcome in zip(
            duels.prompt.tolist(), duels.pairs.tolist(), duels.outcome.tolist(), strict=True
        )
        if not math.isnan(outcome)
    ]


def _asked(prompts: PromptSet, place: int) -> dict[str, object]:
    """A prompt as alpaca_eval names it, by its last user turn; and whole, as `prompt`, where there is more to it."""
    turns = prompts.examples[place].prompt
    whole = {"prompt": [message_row(turn) for turn in turns]} if len(turns) > 1 else {}
    return {**whole, "instruction": prompts.columns.texts[place]}


def file_name(policy: str) -> str:
    """The file of a policy in a folder of its kind."""
    return f"{_safe(policy)}.json"


def _safe(name: str) -> str:
    return name.replace("/", "_")


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")
