"""The table of row shapes, and how a file's shape is found."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from assent.data.formats import conversations, judged, native, pairs
from assent.data.formats.fields import Row, is_dialogue
from assent.data.records import Example, Origin
from assent.errors import DataError


def _always(row: Row) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of rows: `parse` reads a row that has the columns `required`. `matches` tells it from shapes with the
    same columns by the kind of their values, not by their correctness: a bad value is a problem of its row.
    `allowed` are columns that belong to the shape although they are required by others. With `merges`, consecutive
    rows of one prompt are one example."""

    name: str
    description: str
    required: tuple[str, ...]
    parse: Callable[[Row, Origin], Example]
    matches: Callable[[Row], bool] = _always
    allowed: tuple[str, ...] = ()
    merges: bool = False

    def fits(self, row: Row) -> bool:
        return all(row.get(column) is not None for column in self.required) and self.matches(row)

    def includes(self, other: Format) -> bool:
        """Whether a row of this shape has, by nature, all columns of the other: then this one says more about it."""
        own, others = set(self.required), set(other.required)
        return others <= own | set(self.allowed) and not own <= others


def _lists(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row[column], list) for column in columns)


def _list_of_text(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _dialogues(row: Row) -> bool:
    return is_dialogue(row["chosen"]) and is_dialogue(row["rejected"])


def _has_rejected_answer(row: Row) -> bool:
    return row.get("rejected_response") is not None or row.get("rejected_messages") is not None


def _transcript(value: object) -> bool:
    """A list of messages that brings its own prompt."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def _redundant_prompt(row: Row) -> bool:
    return isinstance(row["prompt"], str) and _transcript(row["chosen"]) and _transcript(row["rejected"])


def _several_answers(row: Row) -> bool:
    return _list_of_text(row["chosen"]) and _list_of_text(row["rejected"])


def _plain_preference(row: Row) -> bool:
    return not (pairs.begins_with_prompt(row) or _redundant_prompt(row) or _several_answers(row))


# Columns that hold answers or verdicts: beside one of them a prompt is not "prompts only".
ANSWERS = ("completion", "completions", "chosen", "rejected", "response", "responses", "output", "label", "labels")


def _no_answers(row: Row) -> bool:
    return not any(row.get(column) is not None for column in ANSWERS)


SCORES = (*pairs.STRENGTH, "messages", "prompt_id")
ROWS = (
    Format(
        "assent",
        "assent's own records: prompt, responses and feedback by response index",
        ("prompt", "responses", "feedback"),
        native.native,
        _lists("responses", "feedback"),
    ),
    Format(
        "sharegpt",
        "ShareGPT conversations: conversations [{from, value}], optional system",
        ("conversations",),
        conversations.sharegpt,
    ),
    Format(
        "sharegpt-preference",
        "ShareGPT conversations, with chosen and rejected as one {from, value} each",
        ("conversations", "chosen", "rejected"),
        conversations.sharegpt_preference,
    ),
    Format(
        "sharegpt-binary",
        "ShareGPT conversations whose last answer has kto_tag true or false",
        ("conversations", "kto_tag"),
        conversations.sharegpt_binary,
    ),
    Format(
        "messages",
        "OpenAI conversations: messages [{role, content}]",
        ("messages",),
        conversations.openai_messages,
        lambda row: not _has_rejected_answer(row),
        allowed=("prompt",),
    ),
    Format(
        "messages-binary",
        "OpenAI conversations whose last answer has label true or false",
        ("messages", "label"),
        conversations.openai_binary,
    ),
    Format(
        "messages-preference",
        "OpenAI conversations that end with the chosen answer, with rejected_response or rejected_messages",
        ("messages",),
        conversations.openai_rejected,
        _has_rejected_answer,
    ),
    Format(
        "alpaca",
        "Alpaca: instruction, output, optional input, system, history",
        ("instruction", "output"),
        conversations.alpaca,
        allowed=("text",),
    ),
    Format(
        "alpaca-preference",
        "Alpaca with answers chosen and rejected",
        ("instruction", "chosen", "rejected"),
        conversations.alpaca_preference,
    ),
    Format(
        "alpaca-binary",
        "Alpaca whose output has kto_tag true or false",
        ("instruction", "output", "kto_tag"),
        conversations.alpaca_binary,
    ),
    Format("prompt", "prompts alone (text or messages)", ("prompt",), pairs.prompt_only, _no_answers),
    Format(
        "completion",
        "prompt and completion (text or messages)",
        ("prompt", "completion"),
        pairs.prompt_completion,
    ),
    Format(
        "binary",
        "prompt and completion with label true or false (text or messages)",
        ("prompt", "completion", "label"),
        pairs.binary,
    ),
    Format(
        "preference",
        "prompt, chosen and rejected (text or messages), optional margin or score_chosen and score_rejected",
        ("prompt", "chosen", "rejected"),
        pairs.preference,
        _plain_preference,
        allowed=SCORES,
    ),
    Format(
        "preference-transcripts",
        "prompt, chosen and rejected as text, where both answers repeat the prompt",
        ("prompt", "chosen", "rejected"),
        pairs.preference_transcripts,
        pairs.begins_with_prompt,
        allowed=SCORES,
    ),
    Format(
        "preference-implicit",
        "chosen and rejected as whole conversations (messages); the prompt is their common beginning",
        ("chosen", "rejected"),
        pairs.preference_implicit,
        lambda row: isinstance(row["chosen"], list) or isinstance(row["rejected"], list),
        allowed=SCORES,
    ),
    Format(
        "ultrafeedback-binarized",
        "chosen and rejected as whole conversations beside a text prompt that repeats their question",
        ("prompt", "chosen", "rejected"),
        pairs.preference_redundant,
        _redundant_prompt,
        allowed=SCORES,
    ),
    Format(
        "hh-rlhf",
        'chosen and rejected as dialogues in one text: "\\n\\nHuman: ...\\n\\nAssistant: ..."',
        ("chosen", "rejected"),
        pairs.hh_rlhf,
        _dialogues,
    ),
    Format(
        "best-of",
        "text prompt with lists of right (chosen) and wrong (rejected) answers",
        ("prompt", "chosen", "rejected"),
        judged.best_of,
        _several_answers,
    ),
    Format(
        "ranked",
        "context with completions [{rank, completion}], lowest rank best",
        ("context", "completions"),
        judged.ranked,
    ),
    Format(
        "helpsteer2",
        "prompt and response rated 0 to 4 in five attributes; consecutive rows of a prompt belong together",
        ("prompt", "response", *judged.HELPSTEER_ATTRIBUTES),
        judged.helpsteer2,
        merges=True,
    ),
    Format(
        "helpsteer2-preference",
        "prompt, response_1, response_2 and preference_strength from -3 (first) to 3 (second)",
        ("prompt", "response_1", "response_2", "preference_strength"),
        judged.helpsteer2_preference,
    ),
    Format(
        "helpsteer3-preference",
        "context (messages), response1, response2 and overall_preference from -3 (first) to 3 (second)",
        ("context", "response1", "response2", "overall_preference"),
        judged.helpsteer3_preference,
    ),
    Format(
        "ultrafeedback",
        "instruction with completions [{response, annotations}] rated in several attributes",
        ("instruction", "completions"),
        judged.ultrafeedback,
    ),
    Format(
        "gsm8k",
        'question and worked answer that ends with "#### number"',
        ("question", "answer"),
        judged.gsm8k,
        lambda row: isinstance(row["answer"], str) and "####" in row["answer"],
    ),
    Format("text", "plain text without roles, trained as it is", ("text",), pairs.plain_text),
)
FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in ROWS}


def fitting(row: Row) -> list[str]:
    """Names of the shapes a row can be read as, without those that another one includes."""
    fits = [fmt for fmt in ROWS if fmt.fits(row)]
    return [fmt.name for fmt in fits if not any(other.includes(fmt) for other in fits)]


def detect(rows: Sequence[Row], where: str = "data") -> str:
    """The shape that most of the sample rows have. Broken values count for no shape, so a bad row cannot outvote the
    rest. Raises `DataError` when no shape fits (with the columns found and the nearest shapes), or when several fit
    equally."""
    if not rows:
        raise DataError(f"{where}: no rows")
    votes = Counter(name for row in rows for name in fitting(row))
    if not votes:
        raise DataError(_unknown_shape(rows, where))
    top = max(votes.values())
    best = [name for name in FORMATS if votes[name] == top]
    if len(best) > 1:
        lines = "".join(f"\n  {name}: {FORMATS[name].description}" for name in best)
        raise DataError(f"{where}: the rows fit several shapes; choose one with --data.format:{lines}")
    return best[0]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns of the rows, in order of appearance."""
    return list(dict.fromkeys(str(column) for row in rows for column in row))


def _unknown_shape(rows: Sequence[Row], where: str) -> str:
    found = columns_of(rows)

    def missing(fmt: Format) -> list[str]:
        return [column for column in fmt.required if column not in found]

    def distance(fmt: Format) -> tuple[float, int]:
        return len(missing(fmt)) / len(fmt.required), len(fmt.required)

    lines = []
    for fmt in sorted(ROWS, key=distance)[:3]:
        lacks = ", ".join(missing(fmt))
        why = f"missing: {lacks}" if lacks else "its values are of another kind"
        lines.append(f"\n  {fmt.name}: {fmt.description} ({why})")
    return (
        f"{where}: unknown shape. Columns found: {', '.join(found) or 'none'}. Nearest shapes:{''.join(lines)}\n"
        "Name the shape with --data.format and, where only names differ, the columns with "
        "--data.columns EXPECTED:FOUND."
    )


def choose(name: str) -> Format:
    """The shape of that name. Raises `DataError` with the nearest name."""
    if name in FORMATS:
        return FORMATS[name]
    raise DataError(f"unknown format {name!r}{suggest(name, list(FORMATS))}. Known: auto, {', '.join(FORMATS)}")


def suggest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' where something near is known."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_columns() -> set[str]:
    """Every column that some shape reads."""
    optional = ("system", "input", "history", "rejected_response", "rejected_messages", "meta", *pairs.STRENGTH)
    return {column for fmt in ROWS for column in fmt.required} | set(optional)
