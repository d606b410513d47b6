"""Data files as token trees: load, project, split, tokenise, and account for every row."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from assent.config import DataConfig, InspectConfig
from assent.data.chat import Chat
from assent.data.fit import fitted
from assent.data.formats import load_examples
from assent.data.records import Example, Message, Problem
from assent.data.tree import TokenTree
from assent.data.turns import choose_turns
from assent.errors import DataError

log = logging.getLogger(__name__)

PromptKey = tuple[tuple[str, ...], ...]
View = Callable[[Sequence[Example]], tuple[list[Example], list[Problem]]]

LISTED = 10  # problem rows in an error
RECORDED = 1000  # problem rows in a report
WORD = 1000  # characters that are composed at once
PERCENTILES = (0, 10, 50, 90, 99, 100)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Training and held-out trees, and the examples they come from: `train[i]` is `train_examples[i]` as tokens, and
    `train[i].key` is i; `eval` likewise. `report` says what became of every row; it is plain JSON."""

    train: list[TokenTree]
    eval: list[TokenTree]
    train_examples: list[Example]
    eval_examples: list[Example]
    report: dict[str, Any]


@dataclass(slots=True)
class _Source:
    """One file and what is known of its rows so far. `long` examples were left out for their length, `shortened` ones
    lost turns of their prompt."""

    file: str
    format: str
    num_rows: int
    examples: list[Example]
    problems: list[Problem]
    long: int = 0
    shortened: int = 0

    @property
    def faults(self) -> list[Problem]:
        """The problems that count as bad rows, in the order of the rows."""
        return sorted((p for p in self.problems if p.fault), key=lambda p: (p.origin.file, p.origin.row))


def prepare(config: DataConfig, chat: Chat, view: View) -> Prepared:
    """Reads `config.train` and, where given, `config.eval`; projects the examples by `view`; makes them token trees.

    Problem rows are left out and counted; more than `config.max_bad` of a file's rows, or with `config.strict` any,
    are a `DataError` that names them, as is a file without usable rows. Without an evaluation file, the prompts with
    hash < `config.eval_fraction` are held out, all rows of one prompt together: which side a prompt is on depends on
    its text alone, so runs on different selections of the same data agree.
    """
    source = held_source = _read(config, config.train, view, chat)
    kept, held_out = source.examples, []
    if config.eval is not None:
        held_source = _read(config, config.eval, view, chat)
        held_out = held_source.examples
    elif config.eval_fraction > 0:
        kept = [example for example in source.examples if prompt_hash(example) >= config.eval_fraction]
        held_out = [example for example in source.examples if prompt_hash(example) < config.eval_fraction]
    train, train_examples = _tokenise(source, choose_turns(kept, config.turns), chat, config)
    held, eval_examples = _tokenise(held_source, choose_turns(held_out, config.turns), chat, config)
    sources = [source] if held_source is source else [source, held_source]
    for each in sources:
        _check(config, each, chat)
    _require(config, source, train, held, chat)
    overlap, near = _overlap(train_examples, eval_examples)
    if overlap or near:
        file = config.eval or "the held-out rows"
        also = f", and {near} more but for white space, capitals or Unicode form" if near else ""
        log.warning("%d prompts of %s are also trained on%s: its numbers will be too good", overlap, file, also)
    report = {
        "max_length": config.max_length,
        "long": config.long,
        "files": [_rows(each) | {"command": see_all(config, each.file, chat)} for each in sources],
        "rendered": _rendered(train_examples + eval_examples, chat),
        "train": _contents(train, train_examples, chat),
        "eval": _contents(held, eval_examples, chat),
        "overlap": overlap,
        "overlap_near": near,
    }
    return Prepared(train, held, train_examples, eval_examples, report)


def read_examples(config: DataConfig, file: str, view: View, chat: Chat) -> list[Example]:
    """The examples of a file as `view` projects them, by the same policy for problem rows. Raises `DataError`."""
    source = _read(config, file, view, chat)
    _require(replace(config, train=file), source, source.examples, source.examples, chat)
    return source.examples


def prompt_hash(example: Example) -> float:
    """A number in [0, 1) from the prompt's text (for raw text: from the text), the same everywhere."""
    digest = hashlib.sha256(json.dumps(_prompt_key(example)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def prompt_id(example: Example) -> str:
    """16 hexadecimal digits that stand for the prompt's text, the same everywhere."""
    return hashlib.sha256(json.dumps(_prompt_key(example)).encode()).hexdigest()[:16]


def fingerprint(trees: Iterable[TokenTree]) -> str:
    """sha256 of all that is trained: ids, trained spans, pairs and margins, fields of responses and pairs, in order."""
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(json.dumps([len(tree.prompt), [len(branch) for branch in tree.branches], tree.pairs]).encode())
        digest.update(np.asarray(tree.prompt, np.int64).tobytes())
        for branch in tree.branches:
            digest.update(np.asarray(branch.ids, np.int64).tobytes())
            digest.update(np.asarray(branch.trained, np.bool_).tobytes())
        for name, values in sorted([*tree.per_response.items(), *tree.per_pair.items()]):
            digest.update(json.dumps(name if values.ndim == 1 else [name, values.shape[1]]).encode())
            digest.update(np.asarray(values, np.float32).tobytes())
    return digest.hexdigest()


def lengths(values: Sequence[int]) -> dict[str, float]:
    """Total, mean and percentiles of counts; p0 is the smallest, p100 the largest."""
    if not values:
        return {}
    at = np.percentile(values, PERCENTILES, method="nearest")
    spread = {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, at, strict=True)}
    return {"total": int(np.sum(values)), "mean": round(float(np.mean(values)), 1), **spread}


def _reason(problem: Problem) -> str:
    return ": ".join(filter(None, (problem.column, problem.reason)))


def count_reasons(problems: Iterable[Problem]) -> dict[str, int]:
    """How many rows have each problem, the commonest first; numbers in a reason do not tell two apart, and are N where
    they differ."""
    alike: dict[str, list[list[str]]] = {}
    for problem in problems:
        parts = re.split(r"(\d+)", _reason(problem))
        alike.setdefault("".join(parts[::2]), []).append(parts)
    counts: Counter[str] = Counter()
    for group in alike.values():
        counts["".join(each[0] if len(set(each)) == 1 else "N" for each in zip(*group, strict=True))] += len(group)
    return dict(counts.most_common())


def _read(config: DataConfig, file: str, view: View, chat: Chat) -> _Source:
    loaded = load_examples(file, format=config.format, columns=config.columns, split=config.split, limit=config.limit)
    examples, unfit = view(loaded.examples) if loaded.examples else ([], [])
    source = _Source(file, loaded.format, loaded.num_rows, examples, loaded.problems + unfit)
    _check(config, source, chat)
    return source


def _tokenise(
    source: _Source, examples: list[Example], chat: Chat, config: DataConfig
) -> tuple[list[TokenTree], list[Example]]:
    """Trees and their examples, renumbered; the problems go to the source."""
    fit = fitted(chat, examples, config.max_length, config.long)
    source.problems += fit.problems
    source.long += fit.long
    source.shortened += fit.shortened
    return [replace(tree, key=key) for key, tree in enumerate(fit.trees)], fit.examples


def _check(config: DataConfig, source: _Source, chat: Chat) -> None:
    """The problem-row policy."""
    faults = source.faults
    if not faults:
        return
    if config.strict:
        raise DataError(f"{faults[0]}\nStopped at the first problem row (--data.strict).")
    bad = len({problem.origin for problem in faults})
    if bad > config.max_bad * source.num_rows:
        reasons = [f"  {count} rows: {reason}" for reason, count in count_reasons(faults).items()]
        advice = ""
        if config.long == "refuse" and source.long:
            advice = "\nRows that are too long can be left out (--data.long drop) or lose their first turns "
            advice += "(--data.long truncate_prompt_left)."
        if any("the chat template leaves out" in problem.reason for problem in faults):
            advice += "\nA template that writes all of it can be given with --model.chat_template (docs/chat.md)."
        raise DataError(
            f"{source.file}: {bad} of {source.num_rows} rows cannot be used; --data.max_bad {config.max_bad:g} allows "
            f"{int(config.max_bad * source.num_rows)}.\n"
            + "\n".join(reasons[:LISTED] + ["The first of each:"] + _first_of_each(faults)[:LISTED])
            + f"{advice}\nSee all of them: {see_all(config, source.file, chat)}"
        )


def _first_of_each(problems: Iterable[Problem]) -> list[str]:
    """The first problem of each kind; the same reason many times would say nothing more."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(re.sub(r"\d+", "N", _reason(problem)), problem)
    return [f"  {problem}" for problem in first.values()]


def see_all(config: DataConfig, file: str, chat: Chat) -> str:
    """The command that lists every problem row of a file under the same options."""
    words = ["assent", "data", file, "--problems", "0", "--model", str(chat.tokenizer.name_or_path or "MODEL")]
    shared = {option.name for option in fields(InspectConfig)}
    for option in fields(DataConfig):
        value, usual = getattr(config, option.name), {} if option.name == "columns" else option.default
        if option.name not in shared or value == usual:
            continue
        words.append(f"--{option.name}")
        if isinstance(value, Mapping):
            words += [f"{expected}:{name}" for expected, name in value.items()]
        elif value is not True:
            words.append(str(value))
    template, variables = chat.asked_for
    words += ["--chat_template", str(template)] if template else []
    words += (
        ["--template_kwargs", *(f"{name}:{json.dumps(value)}" for name, value in variables.items())]
        if variables
        else []
    )
    return shlex.join(words)


def _require(config: DataConfig, source: _Source, train: Sequence[object], held: Sequence[object], chat: Chat) -> None:
    if not train:
        why = "; ".join(f"{reason} ({count})" for reason, count in count_reasons(source.problems).items())
        raise DataError(
            f"{config.train}: none of {source.num_rows} rows can be trained on" + (f": {why}" if why else "")
        )
    if held:
        return
    if config.eval is not None:
        raise DataError(f"{config.eval}: no row can be evaluated on. See: {see_all(config, config.eval, chat)}")
    if config.eval_fraction > 0:
        raise DataError(
            f"--data.eval_fraction {config.eval_fraction:g} holds out none of the {len(train)} examples of "
            f"{config.train}. Raise it, or give --data.eval FILE."
        )


def _rows(source: _Source) -> dict[str, Any]:
    """What became of a file's rows."""
    faults = source.faults
    unused = [problem for problem in source.problems if not problem.fault]
    skipped, left = {problem.origin for problem in faults}, {problem.origin for problem in unused}
    return {
        "file": source.file,
        "format": source.format,
        "rows": source.num_rows,
        "rows_used": source.num_rows - len(skipped | left),
        "rows_skipped": len(skipped),
        "rows_unused": len(left - skipped),
        "too_long": source.long,
        "shortened": source.shortened,
        "skipped": count_reasons(faults),
        "unused": count_reasons(unused),
        "problems": [str(problem) for problem in faults[:RECORDED]],
    }


def _rendered(examples: list[Example], chat: Chat) -> int:
    """How many rows look as if a template had written them already; says so where they are not taken as that."""
    count = sum(chat.looks_rendered(example) for example in examples)
    if count and not chat.rendered:
        log.warning(
            "%d of %d examples begin or end with control tokens, as if a chat template had written them already; they "
            "are trained as letters, in the template once more. To take such text as it is: --data.rendered",
            count,
            len(examples),
        )
    return count


def _contents(trees: list[TokenTree], examples: list[Example], chat: Chat) -> dict[str, Any]:
    """What trees hold."""
    branches = [branch for tree in trees for branch in tree.branches]
    return {
        "examples": len(trees),
        "prompts": len(_prompts(examples)),
        "responses": len(branches),
        "responses_cut": sum(int(branch.ids[-1]) not in chat.eos_ids for branch in branches),
        "pairs": sum(len(tree.pairs) for tree in trees),
        "tokens": sum(tree.num_tokens for tree in trees),
        "tokens_trained": sum(tree.num_trained for tree in trees),
        "prompt_tokens": lengths([len(tree.prompt) for tree in trees]),
        "response_tokens": lengths([len(branch) for branch in branches]),
    }


def left_out(report: Mapping[str, Any]) -> list[str]:
    """The commands that list what is not used as it is, one for each file that has such rows."""
    counts, cut = ("rows_skipped", "rows_unused", "too_long", "shortened"), _answers_cut(report)
    return [file["command"] for file in report["files"] if cut or any(file[name] for name in counts)]


def _answers_cut(report: Mapping[str, Any]) -> int:
    return report["train"]["responses_cut"] + report["eval"]["responses_cut"]


def summary(report: Mapping[str, Any]) -> str:
    """In one line, what a run trains on, and what it leaves out."""
    parts = []
    for file in report["files"]:
        used = f"{file['file']}: {file['rows_used']:,} of {file['rows']:,} rows used"
        long, refused = file["too_long"], report["long"] == "refuse"
        counts = {
            "bad": file["rows_skipped"] - long * refused,
            "too long": long,
            "of no use here": file["rows_unused"] - long * (not refused),
            "shortened": file["shortened"],
        }
        parts.append(", ".join([used, *(f"{count:,} {words}" for words, count in counts.items() if count > 0)]))
    train, held = report["train"], report["eval"]
    cut = _answers_cut(report)
    answers = f"; {cut:,} {'answers' if cut > 1 else 'answer'} cut at {report['max_length']:,} tokens" if cut else ""
    kept = f", {held['examples']:,} held out" if held["examples"] else ""
    return f"{'; '.join(parts)}{answers}. {train['examples']:,} examples to train on{kept}."


def _overlap(train: Iterable[Example], held: Iterable[Example]) -> tuple[int, int]:
    """How many held-out prompts are trained on as they are, and how many others but for their writing."""
    exact, trained = _prompts(train), {*map(_loosely, _prompts(train))}
    others = _prompts(held) - exact
    return len(_prompts(held) & exact), sum(_loosely(key) in trained for key in others)


def _loosely(key: PromptKey) -> PromptKey:
    """Without what a reader hardly sees: white space, capitals, and in which of its forms Unicode writes a letter."""
    return tuple(tuple(" ".join(_composed(part).casefold().split()) for part in turn) for turn in key)


def _composed(text: str) -> str:
    """The text in Unicode's form NFKC. Python sorts a run of accents in the square of its length, so a long word is
    composed piece by piece."""
    if len(text) <= WORD:
        return unicodedata.normalize("NFKC", text)
    words = re.split(r"(\s+)", text)
    return "".join(unicodedata.normalize("NFKC", w[i : i + WORD]) for w in words for i in range(0, len(w), WORD))


def _prompts(examples: Iterable[Example]) -> set[PromptKey]:
    return {_prompt_key(example) for example in examples}


def _prompt_key(example: Example) -> PromptKey:
    """What is asked. Variables of the template change how, not what."""
    turns = example.prompt or tuple(turn for response in example.responses for turn in response.messages)
    tools = () if example.tools is None else (("tools", example.tools),)
    return (*map(_turn_key, turns), *tools)


def _turn_key(turn: Message) -> tuple[str, ...]:
    """Role and content; with the names and texts of the other fields where a turn has them."""
    more = [("reasoning", turn.reasoning), ("name", turn.name)]
    more += [(f"call {call.name}", call.arguments) for call in turn.tool_calls]
    return (turn.role, turn.content, *(word for name, text in more if text is not None for word in (name, text)))
