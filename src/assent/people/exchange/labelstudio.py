"""Label Studio: tasks as JSON, with annotations and predictions; `config_of` is the labelling interface they fit.

Data: `prompt` (Paragraphs of {role, content}) and `response_1`, `response_2`, ... (Text), or `responses` (a List, which
a Ranker needs). Controls by kind:

    pair        preference (Pairwise), verdict (Choices: tie, both_bad, cannot_judge), strength (Rating)
    ranking     ranking (Ranker with a Bucket rank_1, rank_2, ... for each level; without buckets there are no ties)
    best        best (Choices)
    attributes  response_1_helpfulness, ... (Choices of numbers; a Rating where the lowest is 1 or more)
    yesno       response_1_good, ... (Choices: yes, no)
    edit        text (TextArea), from (Choices)
    spans       response_1_spans, ... (Labels), response_1_note, ... (TextArea of each region)

and `comment` (TextArea) in all. A stars' rating of 0 means that there is none, so that HelpSteer's 0 needs Choices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from xml.sax.saxutils import quoteattr

from assent.data.formats.message import messages
from assent.data.formats.values import in_words
from assent.data.jsonl import plain_json
from assent.data.records import RowError
from assent.people.exchange.marks import NONE, NOTHING, Questions, labels_of, name_of, questions_of, value_of
from assent.people.exchange.shape import Labelled, Lost, Row, Shape, note_item, note_labels
from assent.people.items import Label, seconds_of
from assent.people.kinds import KINDS
from assent.people.task import ANSWERS, SAMPLED, Item, TaskDefinition

VERDICTS = ("tie", "both_bad", "cannot_judge")
SIDES = {"response_1": "left", "response_2": "right"}
NUMBERED = re.compile(r"response_(\d+)(?:_(.*))?", re.DOTALL)
BUCKET = re.compile(r"rank_(\d+)")
DATA = ("prompt", "responses", "sources", "meta")


# ---- out


def _rows(labelled: Labelled, task: TaskDefinition, lost: Lost) -> Iterator[Row]:
    item = labelled.item
    note_item(item, lost, sources=True)
    note_labels(labelled.labels, lost, times=True, comments=True)
    lost.note("calls of tools, thoughts and attributes in the prompt", any(
        turn.tool_calls or turn.reasoning or turn.attributes or turn.name or turn.tool_call_id for turn in item.prompt
    ))  # fmt: skip
    data: Row = {"prompt": [{"role": turn.role, "content": turn.content} for turn in item.prompt]}
    if task.kind == "ranking":
        data["responses"] = [
            {"id": name_of(answer), "title": f"Response {answer + 1}", "body": text}
            for answer, text in enumerate(item.responses)
        ]
    else:
        data |= {name_of(answer): text for answer, text in enumerate(item.responses)}
    if any(item.sources):
        data["sources"] = list(item.sources)
    yield {
        "data": data | {"meta": plain_json(item.meta)},
        "annotations": [_annotation(label, item, task) for label in labelled.labels],
        "predictions": [],
    }


def _annotation(label: Label, item: Item, task: TaskDefinition) -> Row:
    row: Row = {
        "completed_by": {"email": label.annotator},
        "was_cancelled": False,
        "ground_truth": False,
        "result": list(_results(label, item, task)),
    }
    if label.seconds is not None:
        row["lead_time"] = label.seconds
    if label.at is not None:
        row["created_at"] = datetime.fromtimestamp(label.at, UTC).isoformat().replace("+00:00", "Z")
    return row


def _results(label: Label, item: Item, task: TaskDefinition) -> Iterator[Row]:
    for question, value in questions_of(label.value, item, task).items():
        if question == "preference":
            if value in VERDICTS:
                yield _result("verdict", "prompt", "choices", {"choices": [value]})
            else:
                yield _result("preference", "preference", "pairwise", {"selected": SIDES[value]})
        elif question == "ranking":
            buckets = {f"rank_{place}": list(level) for place, level in enumerate(value, 1)}
            yield _result("ranking", "responses", "ranker", {"ranker": buckets})
        elif question.endswith("_spans"):
            yield from _regions(question, value, item)
        elif question in ("text", "comment"):
            yield _result(question, "prompt", "textarea", {"text": [value]})
        elif isinstance(value, int) and _stars(question, task):
            yield _result(question, _object(question), "rating", {"rating": value})
        else:
            yield _result(question, _object(question), "choices", {"choices": [str(value)]})


def _result(control: str, shown: str, kind: str, value: Row, region: str | None = None) -> Row:
    return {
        "id": region or control, "from_name": control, "to_name": shown, "type": kind, "origin": "manual",
        "value": value,
    }  # fmt: skip


def _object(question: str) -> str:
    """What a control is about: an answer, or all of them."""
    found = NUMBERED.fullmatch(question)
    return f"response_{found[1]}" if found else "prompt"


def _stars(question: str, task: TaskDefinition) -> bool:
    """Whether a number is given as stars, which begin with 1."""
    if question == "strength":
        return True
    found = NUMBERED.fullmatch(question)
    attribute = None if found is None else task.attributes.get(found[2])
    return attribute is not None and attribute.lowest >= 1


def _regions(question: str, spans: list[Row], item: Item) -> Iterator[Row]:
    shown = question.removesuffix("_spans")
    text = item.responses[int(shown.removeprefix("response_")) - 1]
    for number, span in enumerate(spans):
        where = {"start": span["start"], "end": span["end"]}
        region = f"{shown}_{number}"
        value = {**where, "text": text[span["start"] : span["end"]], "labels": [span["label"]]}
        yield _result(question, shown, "labels", value, region)
        if "comment" in span:
            yield _result(f"{shown}_note", shown, "textarea", {**where, "text": [span["comment"]]}, region)


def config_of(task: TaskDefinition, answers: int) -> str:
    """The labelling interface of a task whose items have at most so many answers."""
    names = [name_of(answer) for answer in range(answers)]
    lines = [
        f"<Header value={quoteattr(task.question or KINDS[task.kind].question)}/>",
        '<Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" textKey="content"/>',
        *_controls(task, names),
    ]
    if task.comment != "off":
        lines.append('<TextArea name="comment" toName="prompt" placeholder="Why?" rows="2"/>')
    return "<View>\n" + "".join(f"  {line}\n" for line in lines) + "</View>\n"


def _controls(task: TaskDefinition, names: list[str]) -> Iterator[str]:
    if task.kind == "ranking":
        yield '<List name="responses" value="$responses" title="Answers"/>'
        buckets = "".join(f'<Bucket name="rank_{place}" title="Rank {place}"/>' for place in range(1, len(names) + 1))
        yield f'<Ranker name="ranking" toName="responses">{buckets}</Ranker>'
        return
    for name in names:
        yield f'<Text name="{name}" value="${name}"/>'
    match task.kind:
        case "pair":
            yield '<Pairwise name="preference" toName="response_1,response_2"/>'
            verdicts = [v for v, on in zip(VERDICTS, (task.ties, task.both_bad, task.cannot_judge)) if on]
            if verdicts:
                yield _choices("verdict", "prompt", verdicts)
            if task.strength:
                yield f'<Rating name="strength" toName="prompt" maxRating="{task.strength}"/>'
        case "best":
            yield _choices("best", "prompt", [*names, *([NONE] if task.both_bad else [])])
        case "attributes":
            for name in names:
                yield from (_rating(f"{name}_{each}", name, task) for each in task.attributes)
        case "yesno":
            yield from (_choices(f"{name}_good", name, ["yes", "no"]) for name in names)
        case "edit":
            yield '<TextArea name="text" toName="prompt" rows="8" maxSubmissions="1"/>'
            yield _choices("from", "prompt", [*names, NOTHING])
        case "spans":
            labels = "".join(f"<Label value={quoteattr(label)}/>" for label in task.labels)
            for name in names:
                yield f'<Labels name="{name}_spans" toName="{name}">{labels}</Labels>'
                yield f'<TextArea name="{name}_note" toName="{name}" perRegion="true"/>'


def _rating(question: str, name: str, task: TaskDefinition) -> str:
    ends = task.attributes[question.removeprefix(f"{name}_")]
    if _stars(question, task):
        return f'<Rating name={quoteattr(question)} toName="{name}" maxRating="{ends.highest}"/>'
    return _choices(question, name, [str(number) for number in range(ends.lowest, ends.highest + 1)])


def _choices(name: str, shown: str, words: list[str]) -> str:
    inner = "".join(f"<Choice value={quoteattr(word)}/>" for word in words)
    return f'<Choices name={quoteattr(name)} toName="{shown}" choice="single">{inner}</Choices>'


# ---- in


def read_task_row(row: Mapping[str, Any], task: TaskDefinition, found: Questions) -> Labelled:
    """A task with its annotations and predictions. Raises RowError."""
    data = row.get("data")
    if not isinstance(data, Mapping):
        raise RowError("data", f"expected an object, got {in_words(data)}")
    item = _item(data, found)
    given: list[tuple[str, Callable[[], Label]]] = []
    for kind in ("annotations", "predictions"):
        for number, each in enumerate(row.get(kind) or []):
            who = _who(each, kind, number)
            if each.get("was_cancelled"):
                found.skipped[f"skipped by {who}"] += 1
                continue
            given.append((who, partial(_label, each, f"{kind}[{number}]", item, task, found, who)))
    return Labelled(item, labels_of(given, found))


def _label(each: Mapping[str, Any], where: str, item: Item, task: TaskDefinition, found: Questions, who: str) -> Label:
    """An annotation, or a prediction."""
    seconds = seconds_of(each.get("lead_time"), f"{where}.lead_time")
    value = value_of(_answers(each.get("result") or [], where, item, found), item, task, found)
    return Label(value, who, (), seconds, _at(each))


def _who(each: Mapping[str, Any], kind: str, number: int) -> str:
    """The annotator's e-mail address, or the id of a user, or a model's version."""
    if kind == "predictions":
        return str(each.get("model_version") or "prediction")
    by = each.get("completed_by")
    if isinstance(by, Mapping):
        by = by.get("email") or by.get("id")
    return str(by) if by is not None else f"annotation {number + 1}"


def _at(each: Mapping[str, Any]) -> float | None:
    said = each.get("created_at")
    if said is None:
        return None
    try:
        when = datetime.fromisoformat(said)
    except (TypeError, ValueError):
        raise RowError("created_at", f"expected a date and time, got {in_words(said)}") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _item(data: Mapping[str, Any], found: Questions) -> Item:
    prompt = data.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    count = 0
    while isinstance(data.get(name_of(count)), str):
        count += 1
    own = {*DATA, *map(name_of, range(count))}
    for name in data:
        if name not in own:
            found.unknown[f"data.{name}"] += 1
    listed = data.get("responses") or []
    texts = [data[name_of(answer)] for answer in range(count)] or [each.get("body") for each in listed]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("data.responses", "expected a list of {id, title, body}, each body a text")
    sources = tuple(data.get("sources") or (None,) * len(texts))
    return found.item(messages(prompt, "data.prompt"), tuple(texts), sources, dict(data.get("meta") or {}))


def _answers(results: list[Any], where: str, item: Item, found: Questions) -> dict[str, Any]:
    """Results as answers to questions."""
    answers: dict[str, Any] = {}
    notes = {each["id"]: each for each in results if each.get("id") and str(each.get("from_name")).endswith("_note")}
    for number, each in enumerate(results):
        name, kind, value = each.get("from_name"), each.get("type"), each.get("value") or {}
        place = f"{where}.result[{number}]"
        match kind:
            case "pairwise":
                if (side := value.get("selected")) not in SIDES.values():
                    raise RowError(f"{place}.value.selected", f"expected left or right; got {in_words(side)}")
                answers["preference"] = "response_1" if side == "left" else "response_2"
            case "ranker":
                answers["ranking"] = _levels(value.get("ranker"), place)
            case "rating" | "number":
                answers[name] = _whole(value.get(kind))
            case "choices":
                (said,) = value.get("choices") or [None]
                answers["preference" if name == "verdict" else name] = _number(said, name)
            case "labels":
                answers.setdefault(name, []).append(_span(value, name, item, notes.get(each.get("id")), place))
            case "textarea":
                if str(name).endswith("_note"):
                    if each.get("id") is None:
                        found.unknown["notes of marked passages"] += 1
                else:
                    answers[name] = "\n".join(value.get("text") or [])
            case _:
                found.unknown[f"results of type {kind}"] += 1
    return answers


def _number(said: Any, name: str) -> Any:
    """A choice of a number, of an attribute, as one."""
    return int(said) if isinstance(said, str) and re.fullmatch(r"-?\d+", said) and NUMBERED.match(str(name)) else said


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _levels(ranker: Any, where: str) -> list[list[str]]:
    """Of one list, an answer a level; of buckets rank_1, rank_2, ..., a level each that is not empty."""
    if not isinstance(ranker, Mapping) or not all(isinstance(each, list) for each in ranker.values()):
        raise RowError(f"{where}.value.ranker", "expected an object of lists")
    buckets = {name: names for name, names in ranker.items() if name != "_"}
    if len(buckets) == 1 and not BUCKET.fullmatch(next(iter(buckets))):
        return [[name] for name in next(iter(buckets.values()))]
    if strange := [name for name in buckets if not BUCKET.fullmatch(name)]:
        raise RowError(f"{where}.value.ranker", f"expected buckets rank_1, rank_2, ...; got {strange[0]!r}")
    order = sorted(buckets, key=lambda name: int(name.removeprefix("rank_")))
    return [list(buckets[name]) for name in order if buckets[name]]


def _span(value: Mapping[str, Any], name: Any, item: Item, note: Mapping[str, Any] | None, where: str) -> Row:
    """A marked passage; its text must stand where it says, in code points."""
    found = NUMBERED.match(str(name))
    answer = int(found[1]) - 1 if found else -1
    if not 0 <= answer < len(item.responses):
        raise RowError(f"{where}.from_name", f"expected response_N_spans of one of {len(item.responses)} answers")
    start, end, text = value.get("start"), value.get("end"), value.get("text")
    if isinstance(text, str) and isinstance(start, int) and isinstance(end, int):
        if item.responses[answer][start:end] != text:
            start, end = _units(item.responses[answer], start), _units(item.responses[answer], end)
        if item.responses[answer][start:end] != text:
            raise RowError(
                f"{where}.value", f"characters {value['start']} to {value['end']} of the answer are not {text[:40]!r}"
            )
    (label,) = value.get("labels") or [None]
    said = "\n".join((note or {}).get("value", {}).get("text") or [])
    return {"start": start, "end": end, "label": label} | ({"comment": said} if said else {})


def _units(text: str, place: int) -> int:
    """A place in code points that is given in UTF-16's units, as a browser counts."""
    return len(text.encode("utf-16-le", "surrogatepass")[: 2 * max(place, 0)].decode("utf-16-le", "ignore"))


def most_answers(items: list[Item], task: TaskDefinition) -> int:
    """The most answers of an item, for `config_of`."""
    return max((len(item.responses) for item in items), default=max(SAMPLED[task.kind], ANSWERS[task.kind][0]))


LABELSTUDIO = Shape("labelstudio", "Label Studio: tasks with annotations", tuple(KINDS), _rows, array=True)  # type: ignore[arg-type]
