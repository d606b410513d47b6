"""Which shape the rows of a file have, and what to write on the command line where only names of columns differ."""

from __future__ import annotations

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from assent.data.columns import column, column_names, has_column
from assent.data.formats.fates import SHARED, Fate
from assent.data.formats.shape import Format
from assent.data.formats.table import FORMATS, ROWS
from assent.data.formats.values import Row
from assent.data.records import Origin, RowError
from assent.errors import DataError

# Words in names that tell a better from a worse answer: "chosen_response" and "rejected_response".
OPPOSITES = (
    *(("chosen", "rejected"), ("chosen", "reject"), ("accepted", "rejected"), ("preferred", "rejected")),
    *(("preferred", "dispreferred"), ("preferred", "non_preferred"), ("preferred", "not_preferred")),
    *(("preferred", "unpreferred"), ("better", "worse"), ("best", "worst"), ("good", "bad"), ("winner", "loser")),
    *(("winning", "losing"), ("win", "lose"), ("positive", "negative"), ("pos", "neg"), ("j", "k"), ("w", "l")),
)
VERDICTS = ("kto_tag", "label", "desirable", "is_desirable", "is_good", "good", "liked", "thumbs_up", "accepted")
JUDGED = {"sharegpt": "kto_tag", "alpaca": "kto_tag", "messages": "label", "completion": "label"}
"""Shapes that have a twin with a verdict, and how it is called there."""
# Names of two answers of which another column says which is better.
UNDECIDED = (
    *(("response_1", "response_2"), ("response1", "response2"), ("response_a", "response_b"), ("answer_a", "answer_b")),
    *(("response_0", "response_1"), ("answer_0", "answer_1"), ("answer_1", "answer_2"), ("output_1", "output_2")),
    *(("output_a", "output_b"), ("completion_a", "completion_b"), ("conversation_a", "conversation_b")),
    *(("human_ref_a", "human_ref_b"), ("completion_1", "completion_2"), ("model_a_response", "model_b_response")),
)
PROMPTS = ("prompt", "question", "query", "instruction", "input", "problem", "context", "post", "user", "x")
ANSWERS = ("completion", "response", "answer", "output", "target", "solution", "assistant", "reply", "y")
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
PAIR_SHAPES = {
    *("preference", "preference-transcripts", "preference-implicit", "ultrafeedback-binarized", "hh-rlhf", "best-of"),
    *("sharegpt-preference", "alpaca-preference", "messages-preference"),
}


def fitting(row: Row) -> list[str]:
    """Names of the shapes a row can be read as, without those that another one includes."""
    fits = [fmt for fmt in ROWS if fmt.fits(row)]
    return [fmt.name for fmt in fits if not any(other.includes(fmt) for other in fits)]


def detect(rows: Sequence[Row], where: str = "data") -> str:
    """The shape that most of the sample rows have. Broken values count for no shape, so a bad row cannot outvote the
    rest. Raises `DataError` when no shape fits (with the columns found and the nearest shapes), when several fit
    equally, and when the rows would be read without a pair of answers that they have under other names."""
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
    if overlooked := _overlooked(FORMATS[best[0]], rows, where):
        raise DataError(overlooked)
    return best[0]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns of the rows, in order of appearance."""
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the file's names replaced by the expected ones (a mapped name wins over one of the same name). What
    dots lead to stays in its object as well."""
    if not columns:
        return row
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {expected: column(row, name) for expected, name in columns.items() if has_column(row, name)}


# ------------------------------------------------------------------------------------------------ other names


def _overlooked(fmt: Format, rows: Sequence[Row], where: str) -> str | None:
    """What to say where a shape without feedback leaves a comparison or a verdict unread."""
    if fmt.name in PAIR_SHAPES or any(fate is Fate.FEEDBACK for fate, _ in fmt.fields.values()):
        return None
    by_name = _plain_names(rows, but=fmt.fields)
    anyway = f"\nTo read the rows without them: --data.format {fmt.name}"
    for kind, pairs in (("a better and a worse answer", _opposites(by_name)), ("two answers", _undecided(by_name))):
        for one, other in pairs:
            found = f"the columns {by_name[one]!r} and {by_name[other]!r} look like {kind}"
            advice = _advice(rows, by_name[one], by_name[other], kind == "two answers")
            return f"{where}: {found}; as shape {fmt.name!r} they would not be read. {advice}{anyway}"
    verdicts = _plain_names(rows, but=fmt.fields, kinds=(bool,))
    for name in VERDICTS if fmt.name in JUDGED else ():
        if name in verdicts:
            option = shlex.quote(f"{JUDGED[fmt.name]}:{verdicts[name]}")
            return (
                f"{where}: the column {verdicts[name]!r} looks like a verdict on the answer; as shape {fmt.name!r} it "
                f"would not be read. To read it: --data.columns {option}{anyway}"
            )
    return None


def _opposites(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names of a better and a worse answer, (better, worse)."""
    for better, worse in OPPOSITES:
        for name in names:
            other = re.sub(rf"(?<![a-z]){better}(?![a-z])", worse, name)
            if other != name and other in names:
                yield name, other


def _undecided(names: Collection[str]) -> Iterator[tuple[str, str]]:
    return ((one, other) for one, other in UNDECIDED if one in names and other in names)


def _advice(rows: Sequence[Row], one: str, other: str, undecided: bool) -> str:
    if not undecided and (line := _proposal(rows, pairs_only=True)):
        return f"To read them as pairs: {line}"
    if undecided:
        return (
            "Which of them is better must stand in the row: write the better one into a column chosen, the other into "
            "rejected; or name a column of numbers from -3 (the first) to 3 (the second): "
            f"--data.columns response_1:{one} response_2:{other} preference_strength:FOUND"
        )
    return "To read them as pairs, write them as one of the shapes in docs/formats.md (prompt, chosen, rejected)."


def _plain_names(
    rows: Sequence[Row], but: Collection[str] = (), kinds: tuple[type, ...] = (str, list, dict)
) -> dict[str, str]:
    """The columns that most rows fill with values of these kinds, by their name in small letters with underscores."""
    filled = Counter(str(name) for row in rows for name, value in row.items() if isinstance(value, kinds))
    names = [name for name, count in filled.items() if 2 * count > len(rows) and name not in but]
    return {re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()): name for name in names}


def _proposal(rows: Sequence[Row], pairs_only: bool = False) -> str | None:
    """A --data.columns option with which most rows can be read: it is tried, not guessed."""
    for mapping in _mappings(_plain_names(rows), pairs_only):
        named = [rename(row, mapping) for row in rows]
        votes = Counter(name for row in named for name in fitting(row))
        best = [name for name in votes if votes[name] == max(votes.values())]
        if len(best) != 1 or (pairs_only and best[0] not in PAIR_SHAPES):
            continue
        if 2 * sum(_can_read(FORMATS[best[0]], row) for row in named) > len(rows):
            return "--data.columns " + " ".join(shlex.quote(f"{new}:{old}") for new, old in mapping.items())
    return None


def _can_read(fmt: Format, row: Row) -> bool:
    try:
        fmt.parse(row, Origin("", 0))
    except (RowError, RecursionError):
        return False
    return True


def _mappings(names: Mapping[str, str], pairs_only: bool) -> Iterator[dict[str, str]]:
    """Expected to found names, the likeliest first: pairs with and without a prompt, then single answers."""
    prompts = [{"prompt": names[name]} for name in PROMPTS if name in names]
    talks = [{"conversations": names[name]} for name in CONVERSATIONS if name in names]
    for one, other in _opposites(names):
        for start in (*prompts, *talks, {}):
            yield _changes({**start, "chosen": names[one], "rejected": names[other]})
    if pairs_only:
        return
    answers = [{"completion": names[name]} for name in ANSWERS if name in names]
    for start in prompts:
        for answer in answers:
            if [*start.values()] != [*answer.values()]:
                yield _changes({**start, **answer})
    for name in CONVERSATIONS:
        if name in names:
            yield _changes({"messages": names[name]})
    yield from (_changes(start) for start in prompts)


def _changes(mapping: dict[str, str]) -> dict[str, str]:
    return {new: old for new, old in mapping.items() if new != old}


def _unknown_shape(rows: Sequence[Row], where: str) -> str:
    found = columns_of(rows)

    def missing(fmt: Format) -> list[str]:
        return [name for name in fmt.required if name not in found]

    def distance(fmt: Format) -> tuple[float, int]:
        return len(missing(fmt)) / len(fmt.required), len(fmt.required)

    lines = []
    for fmt in sorted(ROWS, key=distance)[:3]:
        lacks = ", ".join(missing(fmt))
        why = f"missing: {lacks}" if lacks else "its values are of another kind"
        lines.append(f"\n  {fmt.name}: {fmt.description} ({why})")
    line = _proposal(rows)
    names = _plain_names(rows)
    two = next(_undecided(names), None)
    if line is not None:
        advice = f"With these names the rows have a shape: {line}"
    elif two is not None:
        advice = _advice(rows, names[two[0]], names[two[1]], undecided=True)
    else:
        advice = "Where only names differ, name the columns with --data.columns EXPECTED:FOUND."
    return (
        f"{where}: unknown shape. Columns found: {', '.join(found) or 'none'}. Nearest shapes:{''.join(lines)}\n"
        f"{advice}\nA shape can be named with --data.format; docs/formats.md shows all of them."
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
    read = {name for fmt in ROWS for name in (*fmt.required, *fmt.fields)}
    return read | {name for name, (fate, _) in SHARED.items() if fate is not Fate.REFUSED}


def check_columns(columns: Mapping[str, str], rows: Sequence[Row], where: str) -> None:
    """Raises `DataError` for a column map that does not fit. A name that no shape reads is a column for rewards, unless
    it is nearly one of theirs."""
    known = sorted(known_columns())
    for expected, name in columns.items():
        if expected not in known and (close := difflib.get_close_matches(expected, known, n=1, cutoff=0.8)):
            raise DataError(
                f"--data.columns: no shape has a column {expected!r}; did you mean {close[0]!r}? Known: "
                f"{', '.join(known)}"
            )
        if not any(has_column(row, name) for row in rows):
            found = column_names(rows)
            raise DataError(
                f"--data.columns: {expected}:{name}: {where} has no column {name!r}{suggest(name, found)}. Found: "
                f"{', '.join(found)}"
            )
