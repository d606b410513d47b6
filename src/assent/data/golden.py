"""Golden answers beside a policy's own answers to the same prompts: pairs that nobody has to label (arXiv
2311.08045)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assent.data.conversions import Unused
from assent.data.dataset import count_reasons, prompt_hash, prompt_id
from assent.data.formats.fields import same_answer
from assent.data.records import Example, Pair, Problem, Response, RowError
from assent.data.tree import TokenTree
from assent.data.views import Projected, answers_view, sft_view
from assent.errors import DataError

SHARE = "golden"
"""The field [M] of pairs with a golden answer: what each counts of its golden answer, 1 / (its samples)."""
CUT = "the answer did not come to an end"


def samples_view(examples: Sequence[Example]) -> Projected:
    """Each answer in an example of its own, without feedback. One that did not come to an end is a problem without
    fault: what a row says of itself in `finished`, one truth value or one for each answer, or of a response; so is a
    row of which all answers were left out when they were sampled. Raises DataError where no answer came to an end."""
    silent = [each for each in examples if not each.responses and each.meta.get("finished") == []]
    rows, problems = answers_view([each for each in examples if each not in silent] if silent else examples)
    problems += [Problem(each.origin, "responses", "no answer that has a text", fault=False) for each in silent]
    kept: list[Example] = []
    for example in rows:
        try:
            ended = _finished(example)
        except RowError as error:
            problems.append(error.at(example.origin))
            continue
        answers = zip(example.responses, ended, strict=True)
        kept += [replace(example, responses=(each,), feedback=()) for each, whole in answers if whole]
        problems += [Problem(example.origin, "responses", CUT, fault=False)] * (len(ended) - sum(ended))
    if rows and not kept:
        raise DataError(
            f"{rows[0].origin.file}: no answer came to an end ({_reasons(problems)}), so there is nothing to tell "
            "golden answers from. Let the policy write longer answers: --sampling.max_new_tokens"
        )
    return kept, problems


def _finished(example: Example) -> list[bool]:
    said = example.meta.get("finished", True)
    listed = list(said) if isinstance(said, list | tuple) else [said] * len(example.responses)
    if len(listed) != len(example.responses) or not all(isinstance(one, bool) for one in listed):
        answers = len(example.responses)
        raise RowError("finished", f"expected true or false, or one for each of {answers} answers; got {said!r}")
    return [one is True and each.finished for one, each in zip(listed, example.responses, strict=True)]


def by_prompt(examples: Sequence[Example]) -> dict[str, tuple[Response, ...]]:
    """All answers to each prompt, under its `prompt_id`."""
    found: dict[str, list[Response]] = defaultdict(list)
    for example in examples:
        found[prompt_id(example)] += example.responses
    return {key: tuple(own) for key, own in found.items()}


@dataclass(slots=True)
class GoldenView:
    """A view: each golden answer and, behind it, the samples of its prompt (`samples`, by `prompt_id`) that are equal
    to no golden answer there, with the pairs (0, 1), (0, 2), ... A golden answer without such samples is a problem
    without fault, as is one whose prompt is held out: whose hash is below `held_out`. `same` is how many samples were
    left out as golden. Raises DataError where nothing is left."""

    samples: Mapping[str, Sequence[Response]]
    held_out: float = 0.0
    same: int = 0

    def __call__(self, examples: Sequence[Example]) -> Projected:
        golden, problems = sft_view(examples)
        others = {key: self._others(key, own) for key, own in by_prompt(golden).items()}
        kept: list[Example] = []
        for example in golden:
            try:
                kept.append(self._against(example, others[prompt_id(example)]))
            except RowError as error:
                problems.append(replace(error.at(example.origin), fault=False))
        if golden and not kept:
            raise DataError(
                f"{golden[0].origin.file}: none of {len(golden):,} golden answers can be told from a sample: "
                f"{_reasons(problems)}."
            )
        return kept, problems

    def _others(self, key: str, golden: Sequence[Response]) -> tuple[Response, ...]:
        answers = self.samples.get(key, ())
        found = tuple(each for each in answers if not any(same_answer(each, one) for one in golden))
        self.same += len(answers) - len(found)
        return found

    def _against(self, example: Example, others: tuple[Response, ...]) -> Example:
        if not example.prompt:
            raise Unused("prompt", "plain text has no prompt")
        if prompt_hash(example) < self.held_out:
            raise Unused("prompt", "its prompt is held out")
        if not others:
            given = prompt_id(example) in self.samples
            raise Unused("responses", "all samples are golden answers" if given else "its prompt has no sample")
        pairs = tuple(Pair(0, number) for number in range(1, len(others) + 1))
        return replace(example, responses=(*example.responses, *others), feedback=pairs)


def _reasons(problems: Sequence[Problem]) -> str:
    return "; ".join(f"{reason} ({count:,})" for reason, count in list(count_reasons(problems).items())[:4])


def with_share(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """The trees with what each of their pairs counts (`SHARE`)."""
    return [
        replace(tree, per_pair={SHARE: np.full(len(tree.pairs), 1 / len(tree.pairs), np.float32)}) for tree in trees
    ]
