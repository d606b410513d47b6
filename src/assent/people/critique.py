"""`assent critique`: answers are criticised by a principle, and revised after the critique (Constitutional AI, arXiv
2212.08073): demonstrations for supervised fine-tuning."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.text import Text

from assent import distributed
from assent.config import CritiqueConfig
from assent.data.records import Example, Message, Problem, Response
from assent.data.views import answers_view
from assent.errors import DataError
from assent.models.loading import quiet_transformers
from assent.people import asked
from assent.people.asked import Cost
from assent.people.principles import Constitution, Principle, draw, read_few_shots, read_principles
from assent.people.writers import AskedWriter, Written
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)

CHAIN = "chain"
"""The column that holds an answer and all that became of it."""
CALLS = "calls a tool; what is revised are answers in words"
PORTION = 512
"""Answers that are criticised together: what is in memory at once."""


@dataclass(frozen=True)
class CritiqueSummary:
    """Rows written, of how many answers; why others have none; `unchanged` revisions say what the answer said."""

    file: str
    answers: int
    rows: int
    left_out: Mapping[str, int]
    failures: Mapping[str, int]
    unchanged: int
    cost: Cost


@dataclass(frozen=True)
class Step:
    """What came of one answer by one principle."""

    principle: Principle
    critique: str
    answer: str


@dataclass(frozen=True)
class Chain:
    """An answer to a prompt and its revisions; `number` is its own among all answers."""

    number: int
    example: Example
    first: Response
    steps: tuple[Step, ...] = ()

    @property
    def answer(self) -> str:
        return self.steps[-1].answer if self.steps else self.first.text


def critique(config: CritiqueConfig) -> CritiqueSummary:
    """Asks `config.source` for a critique of every answer by a principle that is drawn for it, then for a revision,
    `config.revisions` times, and writes a row for each answer (or each revision): the prompt, the revision, and in
    `meta.chain` what led to it.

    Raises ConfigError, DataError and ModelError before anything is asked; when all is written, Incomplete where the
    server left questions without an answer, DataError where nothing was revised at all."""
    quiet_transformers()
    world = distributed.init()
    (name, spec), *_ = asked.named([config.source], config.judge, "--source").items()
    constitution = distributed.on_main(partial(read_principles, config.principles, "critique"))
    few_shots = constitution.few_shots
    if config.few_shots is not None:
        few_shots = distributed.on_main(partial(read_few_shots, config.few_shots))
    read = [config.file, config.principles, config.few_shots]
    distributed.on_main(partial(asked.check_places, config.out, config.resume, config.summary, read))
    chains, left_out = distributed.on_main(partial(_chains, config))
    writer = AskedWriter(
        spec, name, config.judge, config.remote, asked.place_of(config, config.judge.engine, world), "--source"
    )
    shown = tuple(turn for shot in few_shots for turn in shot)
    ended, failures = _revised(config, chains, constitution, shown, writer)
    rows = [row for chain in ended for row in _rows(chain, name, config.keep)]
    unchanged = sum(
        step.answer == before
        for chain in ended
        for before, step in zip([chain.first.text, *(s.answer for s in chain.steps)], chain.steps, strict=False)
    )
    cost = writer.cost
    summary = CritiqueSummary(config.file, len(chains), len(rows), left_out, dict(failures), unchanged, cost)
    if world.is_main:
        if rows:
            asked.write_examples(rows, config.out)
        asked.write_summary(config.summary, summary)
        render(summary, config.out, name)
    asked.check_answered(config.out, {name: cost}, len(rows))
    if not rows:
        raise DataError(
            f"--out {config.out}: none of {len(chains)} answers was revised. Mostly: "
            f"{failures.most_common(1)[0][0] if failures else 'there was none'}."
        )
    return summary


def _chains(config: CritiqueConfig) -> tuple[list[Chain], Mapping[str, int]]:
    shape = {name: getattr(config, name) for name in ("format", "columns", "split", "limit")}
    loaded, reasons = asked.read_rows(config.file, **shape)
    examples, unfit = answers_view(loaded)
    answers, problems = [], list(unfit)
    for example in examples:
        for number, response in enumerate(example.responses):
            if response.messages[-1].tool_calls:
                problems.append(Problem(example.origin, f"responses[{number}]", CALLS))
            else:
                answers.append((example, response))
    asked.say_problems(config.file, problems)
    if config.resume:
        asked.check_same(config.out, examples)
    chains = [Chain(number, example, response) for number, (example, response) in enumerate(answers)]
    return chains, dict(reasons + Counter(problem.reason for problem in problems))


def _revised(
    config: CritiqueConfig,
    chains: Sequence[Chain],
    constitution: Constitution,
    shown: tuple[Message, ...],
    writer: AskedWriter,
) -> tuple[list[Chain], Counter[str]]:
    """The chains that got to their end, and why others did not."""
    ended: list[Chain] = []
    failures = Counter[str]()
    with ProgressDisplay(total=len(chains), label="critique") as progress:
        for start in range(0, len(chains), PORTION):
            going = list(chains[start : start + PORTION])
            for _ in range(config.revisions):
                drawn = {chain.number: _drawn(constitution, chain, config.seed) for chain in going}
                going = _turn(going, drawn, shown, writer, failures)
            ended += going
            progress.update(min(start + PORTION, len(chains)), f"{len(ended):,} revised")
    return ended, failures


def _drawn(constitution: Constitution, chain: Chain, seed: int) -> Principle:
    """One that the answer has not been revised by, as long as there is one."""
    principles, turn = constitution.principles, len(chain.steps)
    used = [step.principle for step in chain.steps[turn - turn % len(principles) :]]
    left = [principle for principle in principles if principle not in used] or principles
    return left[draw(len(left), seed, chain.example.origin.row, chain.number, turn)]


def _turn(
    chains: Sequence[Chain],
    drawn: Mapping[int, Principle],
    shown: tuple[Message, ...],
    writer: AskedWriter,
    failures: Counter[str],
) -> list[Chain]:
    """The chains that have one more revision."""
    by_number = {chain.number: chain for chain in chains}
    talks = {
        number: (*conversation(chain, shown), Message("user", drawn[number].critique or ""))
        for number, chain in by_number.items()
    }
    critiques = _kept(writer.write(talks), "critique", failures)
    requests = {
        number: (*talks[number], Message("assistant", text), Message("user", drawn[number].revision or ""))
        for number, text in critiques.items()
    }
    revisions = _kept(writer.write(requests), "revision", failures)
    return [
        replace(
            by_number[number],
            steps=(*by_number[number].steps, Step(drawn[number], critiques[number], text)),
        )
        for number, text in revisions.items()
    ]


def _kept(written: Mapping[int, Written | str], what: str, failures: Counter[str]) -> dict[int, str]:
    failures.update(f"{what}: {said}" for said in written.values() if isinstance(said, str))
    return {number: said.text for number, said in written.items() if isinstance(said, Written)}


def conversation(chain: Chain, shown: tuple[Message, ...]) -> tuple[Message, ...]:
    """What is asked about: the prompt and the answer as it now is, behind the example conversations. A system message
    stands first, where templates want it."""
    prompt = chain.example.prompt
    system = tuple(turn for turn in prompt if turn.role in ("system", "developer"))
    rest = tuple(turn for turn in prompt if turn.role not in ("system", "developer"))
    earlier = chain.first.messages[:-1]
    return (*system, *shown, *rest, *earlier, Message("assistant", chain.answer))


def _rows(chain: Chain, name: str, keep: str) -> list[Example]:
    """A row for the last revision, or for each."""
    said: list[dict[str, object]] = [{"answer": chain.first.text, "source": chain.first.source}]
    rows = []
    for step in chain.steps:
        said = [*said, {"principle": step.principle.name, "critique": step.critique, "answer": step.answer}]
        final = replace(chain.first.messages[-1], content=step.answer, reasoning=None)
        response = Response((*chain.first.messages[:-1], final), name)
        meta = {**chain.example.meta, CHAIN: said}
        rows.append(replace(chain.example, responses=(response,), feedback=(), meta=meta))
    return rows[-1:] if keep == "last" else rows


def render(summary: CritiqueSummary, out: str, name: str) -> None:
    """The tables."""
    console = asked.console()
    console.print(
        Text(
            f"{summary.rows:,} rows{f' in {out}' if summary.rows else ''}, of {summary.answers:,} answers of "
            f"{summary.file}; {summary.unchanged:,} revisions changed nothing"
        )
    )
    for what, reasons in {"left out": summary.left_out, "not revised": summary.failures}.items():
        for line in asked.reason_lines(what, reasons):
            console.print(Text(line))
    asked.show_costs(console, {name: summary.cost})
