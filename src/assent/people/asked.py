"""What the commands that write AI feedback share: rows in, who is asked, rows out, and what it cost."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assent.config.judge import EndpointConfig
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import check_new_file, plain_json, write_rows
from assent.data.records import Example, Problem
from assent.distributed import World, gathered
from assent.errors import ConfigError, DataError, Incomplete, RunFolderError
from assent.names import suggestion
from assent.outputs import check_apart, try_file, write_text
from assent.rewards.judge.ask import Judge, Spent
from assent.rewards.judge.folder import Place
from assent.rewards.judge.ledger import CACHED
from assent.rewards.judge.openai import REFUSALS, OpenAIJudge, path_of

log = logging.getLogger(__name__)

KINDS = {"openai": "openai", "judge": "model"}
"""What stands before "=" in a word -> the same for `assent.rewards.judge.build`."""
LISTED = 10


@dataclass(frozen=True)
class Cost:
    """What one model was asked: questions, the share that was in the cache, requests, tokens, seconds. `told` is False
    where a server did not say of all answers how many tokens they are; `unanswered` are questions that a server left,
    by why, and `said` is what was heard last of one, in full."""

    questions: int
    cached: int
    requests: int
    seconds: float
    tokens_in: int
    tokens_out: int
    told: bool
    unanswered: Mapping[str, int] = field(default_factory=dict)
    said: str = ""

    @property
    def open(self) -> int:
        """Questions that may be answered another time."""
        return sum(count for why, count in self.unanswered.items() if not why.endswith(REFUSALS))


def cost_of(judge: Judge, noted: Mapping[str, Sequence[float]]) -> Cost:
    """What a judge cost on all ranks, by what it counted itself and by what a ledger noted. Every rank must call it."""
    asked = noted.get(CACHED, ())
    lost = Counter(judge.unanswered) if isinstance(judge, OpenAIJudge) else Counter[str]()
    ranks: list[tuple[Spent, Counter[str]]] = gathered(lambda: (judge.spent, lost))
    spent = [each for each, _ in ranks]
    return Cost(
        questions=len(asked),
        cached=int(sum(asked)),
        requests=sum(each.requests for each in spent),
        seconds=sum(each.seconds for each in spent),
        tokens_in=sum(each.read for each in spent),
        tokens_out=sum(each.written for each in spent),
        told=not any(each.untold for each in spent),
        unanswered=dict(sum((each for _, each in ranks), Counter[str]())),
        said=judge.said if isinstance(judge, OpenAIJudge) else "",
    )


# ---- rows


def check_places(
    out: str, resume: bool, summary: str | None, read: Sequence[str | None], dropped: str | None = None
) -> None:
    """Before any work, whether the results can be written without loss of what is `read`. With `resume`, `out` may be
    there: it is written again."""
    check_apart({"--out": out, "--summary": summary, "--dropped": dropped}, read)
    if not resume:
        check_new_file(out)
    elif os.path.isdir(out):
        raise RunFolderError(f"--out {out} is a folder. Choose another name.")
    else:
        try_file(out, f"--out {out}")
    for flag, path in (("--summary", summary), ("--dropped", dropped)):
        if path is not None:
            try_file(path, f"{flag} {path}")


def check_same(out: str, examples: Sequence[Example]) -> None:
    """Raises RunFolderError where `out`, which --resume would replace, has rows that are not of these prompts."""
    if not os.path.exists(out) or os.path.getsize(out) == 0:  # nothing came of it before
        return
    known = {example.prompt for example in examples}
    try:
        there = load_examples(out).examples
    except DataError as error:
        raise RunFolderError(f"--resume: --out {out} is no file of such rows: {error} Choose another --out.") from error
    if any(example.prompt not in known for example in there):
        raise RunFolderError(f"--resume: --out {out} has answers to other prompts than these. Choose another --out.")


def read_rows(file: str, *, annotator: str | None = None, **shape: Any) -> tuple[list[Example], Counter[str]]:
    """The rows of a file, and why others cannot be used, which is said. `annotator` is the column that names who gave
    the feedback that names nobody."""
    loaded = load_examples(file, **shape)
    say_problems(file, loaded.problems)
    examples = list(loaded.examples)
    if annotator is not None:
        if not any(annotator in example.meta for example in examples):
            known = list(dict.fromkeys(name for example in examples for name in example.meta))
            raise ConfigError(
                f"--annotator {annotator}: {file} has no such column.{suggestion(annotator, known)}"
                + (f" There are: {', '.join(known)}." if known else "")
            )
        examples = [_signed(example, annotator) for example in examples]
    return examples, Counter(problem.reason for problem in loaded.problems)


def _signed(example: Example, column: str) -> Example:
    who = example.meta.get(column)
    name = "" if who is None else str(who).strip()
    given = [replace(each, annotator=name) if name and each.annotator is None else each for each in example.feedback]
    return replace(example, feedback=tuple(given))


def say_problems(file: str, problems: Sequence[Problem]) -> None:
    """Names the first; what is no fault of a row is counted alone."""
    faults = [problem for problem in problems if problem.fault]
    for problem in faults[:LISTED]:
        log.warning(f"left out: {problem}")
    if len(faults) > LISTED:
        log.warning(f"left out: {len(faults) - LISTED} more rows (assent data {file})")


def write_examples(examples: Iterable[Example], out: str) -> int:
    """The examples as rows of assent's own shape; how many."""
    return write_rows(map(to_row, examples), out)


# ---- who is asked


def named(words: Sequence[str], config: EndpointConfig, flag: str) -> dict[str, str]:
    """Annotator -> openai=URL or model=FOLDER, of words as [NAME=]openai=URL, [NAME=]judge=FOLDER. Without a name, the
    model's name on a server, or the folder's. Raises ConfigError."""
    found: dict[str, str] = {}
    for word in words:
        name, kind, where = _split(word, flag)
        name = name or ((config.model or "judge") if kind == "openai" else called(where))
        if name in found:
            raise ConfigError(f"{flag}: two are called '{name}'. Give each a name: NAME=openai=URL.")
        spec = f"{KINDS[kind]}={where}"
        if _same(spec) in map(_same, found.values()):  # the URL is not shown: it may hold a password
            raise ConfigError(f"{flag}: '{name}' is the same model as another, whose verdicts would count twice.")
        found[name] = spec
    return found


def _same(spec: str) -> str:
    """Alike for two spellings of one server, or of one folder."""
    kind, _, where = spec.partition("=")
    return f"{kind}={path_of(where.rstrip('/'))}" if kind == "openai" else f"{kind}={os.path.realpath(where)}"


def called(folder: str) -> str:
    """What a model from a folder is called as an annotator."""
    path = PurePath(folder)
    return (path.parent.name if path.name == "model" and path.parent.name else path.name) or "judge"


def _split(word: str, flag: str) -> tuple[str, str, str]:
    first, given, rest = word.partition("=")
    name, kind, where = ("", first, rest) if first in KINDS else (first, *rest.partition("=")[::2])
    if not given or (first not in KINDS and not name.strip()) or kind not in KINDS or not where:
        hint = "" if kind in KINDS else suggestion(kind, KINDS)
        raise ConfigError(
            f"{flag}: expected openai=URL or judge=FOLDER, perhaps with a name before it, as in NAME=openai=URL.{hint}"
        )
    return name, kind, where


def place_of(config: Any, engine: str, world: World) -> Place:
    """Where models from folders run."""
    return Place(world.device, engine, config.precision, trust_remote_code=config.trust_remote_code)


# ---- what is said at the end


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def show_costs(shown: Console, costs: Mapping[str, Cost]) -> None:
    """The table, and what a server said that left questions without an answer."""
    shown.print(_cost_table(costs))
    for cost in costs.values():
        if cost.unanswered and cost.said:
            shown.print(Text(cost.said))


def _cost_table(costs: Mapping[str, Cost]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for name in ("questions", "cached", "requests", "seconds", "tokens in", "tokens out", "unanswered"):
        table.add_column(name, justify="right")
    for name, cost in costs.items():
        tokens = [f"{count:,}" + ("" if cost.told else "+") for count in (cost.tokens_in, cost.tokens_out)]
        lost = sum(cost.unanswered.values())
        table.add_row(
            Text(name),
            f"{cost.questions:,}",
            f"{cost.cached:,}",
            f"{cost.requests:,}",
            f"{cost.seconds:.1f}",
            *tokens,
            Text(f"{lost:,}", style="bold red" if lost else ""),
        )
    return table


def reason_lines(what: str, reasons: Mapping[str, int]) -> list[str]:
    """The most frequent reasons, a line each."""
    often = Counter(reasons).most_common()
    lines = [f"{what}: {count:,}: {reason}" for reason, count in often[:LISTED]]
    if rest := often[LISTED:]:
        lines.append(f"{what}: {sum(count for _, count in rest):,}: {len(rest):,} other reasons")
    return lines


def write_summary(path: str | None, found: Any) -> None:
    """A dataclass of numbers as JSON; NaN is null."""
    if path is not None:
        text = json.dumps(plain_json(found), indent=2, allow_nan=False, ensure_ascii=False)
        write_text(Path(path), text + "\n", f"--summary {path}")


def check_answered(out: str, costs: Mapping[str, Cost], rows: int) -> None:
    """Raises Incomplete where servers left questions without an answer; `rows` are in `out`, which is not there
    without any."""
    lost = {name: cost.open for name, cost in costs.items() if cost.open}
    if lost:
        counts = ", ".join(f"{name} {count}" for name, count in lost.items())
        why = Counter[str]()
        for name in lost:
            why.update(costs[name].unanswered)
        done = f"{rows:,} rows are written" if rows else "nothing is written"
        raise Incomplete(
            f"--out {out}: {done}, but servers left questions without an answer ({counts}; mostly: "
            f"{why.most_common(1)[0][0]}). The same command with --resume asks them alone."
        )
