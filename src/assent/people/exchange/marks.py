"""A value as answers to named questions, as annotation tools have them, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from assent.data.formats.values import in_words
from assent.data.records import Example, Message, Response, RowError
from assent.people.items import Label, item_from
from assent.people.kinds import KINDS, LabelError, Value
from assent.people.task import Item, TaskDefinition

NONE, NOTHING, YES, NO = "none", "nothing", "yes", "no"


@dataclass(slots=True)
class Questions:
    """What a file of an annotation tool has that is not read, and what was skipped; how its items are made."""

    task: TaskDefinition
    unknown: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    refused: list[RowError] = field(default_factory=list)
    """Labels of the present item that are none of the task's; the item stays."""

    def item(
        self, prompt: tuple[Message, ...], responses: tuple[str, ...], sources: tuple[Any, ...], meta: Mapping[str, Any]
    ) -> Item:
        """An item of these, checked as one of any file. Raises RowError."""
        pairs = zip(responses, sources or (None,) * len(responses), strict=True)
        answers = tuple(Response((Message("assistant", text),), source) for text, source in pairs)
        return item_from(Example(prompt, answers, meta=dict(meta)), self.task)


def labels_of(given: Iterable[tuple[str, Callable[[], Label]]], found: Questions) -> tuple[Label, ...]:
    """The labels that can be made; of each annotator's that cannot it is noted why."""
    made = []
    for who, make in given:
        try:
            made.append(make())
        except RowError as error:
            found.refused.append(RowError(error.column, f"the label of {who} is left out: {error.reason}"))
    return tuple(made)


def name_of(answer: int) -> str:
    """What an answer is called."""
    return f"response_{answer + 1}"


def questions_of(value: Value, item: Item, task: TaskDefinition) -> dict[str, Any]:
    """Answers to questions: names of answers, words, numbers, levels of names, and spans as they are, without their
    answer. What is null has none."""
    answers: dict[str, Any]
    match task.kind:
        case "pair":
            verdict = value["verdict"]
            chosen = name_of(value["better"]) if verdict == "better" else verdict
            answers = {"preference": chosen, "strength": value.get("strength")}
        case "ranking":
            answers = {"ranking": [[name_of(answer) for answer in level] for level in value["levels"]]}
        case "best":
            answers = {"best": NONE if value["best"] is None else name_of(value["best"])}
        case "attributes":
            answers = {
                f"{name_of(answer)}_{name}": score
                for answer, scores in enumerate(value["scores"])
                for name, score in scores.items()
            }
        case "yesno":
            answers = {
                f"{name_of(answer)}_good": None if label is None else YES if label else NO
                for answer, label in enumerate(value["labels"])
            }
        case "edit":
            origin = value.get("from")
            answers = {"text": value["text"], "from": NOTHING if origin is None else name_of(origin)}
        case "spans":
            answers = {f"{name_of(answer)}_spans": [] for answer in range(len(item.responses))}
            for span in value["spans"]:
                plain = {name: each for name, each in span.items() if name != "answer" and each not in (None, "")}
                answers[f"{name_of(span['answer'])}_spans"].append(plain)
    answers["comment"] = (value.get("comment") or "").strip() or None
    return {name: each for name, each in answers.items() if each is not None}


def value_of(answers: Mapping[str, Any], item: Item, task: TaskDefinition, found: Questions) -> Value:
    """The value of such answers, checked. Questions of other names are noted. Raises RowError."""
    value = _value(answers, item, task)
    known = _known(item, task)
    for name in answers:
        if name not in known:
            found.unknown[f"question {name}"] += 1
    if isinstance(comment := answers.get("comment"), str) and comment.strip():
        value["comment"] = comment
    try:
        KINDS[task.kind].check(value, item, task)
    except LabelError as error:
        missing = [name for name in known if name not in answers and name not in ("comment", "strength")]
        hint = f"; there is no answer to: {', '.join(missing)}" if missing else ""
        raise RowError("responses", f"{str(error).removesuffix('.')}{hint}") from None
    return value


def _known(item: Item, task: TaskDefinition) -> list[str]:
    answers = [name_of(answer) for answer in range(len(item.responses))]
    own = {
        "pair": ["preference", "strength"],
        "ranking": ["ranking"],
        "best": ["best"],
        "attributes": [f"{answer}_{name}" for answer in answers for name in task.attributes],
        "yesno": [f"{answer}_good" for answer in answers],
        "edit": ["text", "from"],
        "spans": [f"{answer}_spans" for answer in answers],
    }
    return [*own[task.kind], "comment"]


def _value(answers: Mapping[str, Any], item: Item, task: TaskDefinition) -> dict[str, Any]:
    places = {name_of(answer): answer for answer in range(len(item.responses))}

    def place(name: object, question: str) -> int:
        if not isinstance(name, str) or name not in places:
            raise RowError(f"responses.{question}", f"expected one of {', '.join(places)}; got {in_words(name)}")
        return places[name]

    match task.kind:
        case "pair":
            said = answers.get("preference")
            if said in ("tie", "both_bad", "cannot_judge"):
                return {"verdict": said, "better": None, "strength": None}
            return {"verdict": "better", "better": place(said, "preference"), "strength": answers.get("strength")}
        case "ranking":
            levels = answers.get("ranking") or []
            return {"levels": [[place(name, "ranking") for name in level] for level in levels]}
        case "best":
            said = answers.get("best")
            return {"best": None if said == NONE else place(said, "best")}
        case "attributes":
            return {
                "scores": [
                    {name: answers.get(f"{answer}_{name}") for name in task.attributes if f"{answer}_{name}" in answers}
                    for answer in places
                ]
            }
        case "yesno":
            return {"labels": [_label(answers.get(f"{answer}_good"), answer) for answer in places]}
        case "edit":
            origin = answers.get("from", NOTHING)
            return {"text": answers.get("text"), "from": None if origin == NOTHING else place(origin, "from")}
        case _:
            return {
                "spans": [
                    {"answer": index} | dict(span) if isinstance(span, Mapping) else span
                    for answer, index in places.items()
                    for span in answers.get(f"{answer}_spans") or []
                ]
            }


def _label(said: object, answer: str) -> bool | None:
    if said not in (None, YES, NO):
        raise RowError(f"responses.{answer}_good", f"expected yes or no; got {in_words(said)}")
    return None if said is None else said == YES
