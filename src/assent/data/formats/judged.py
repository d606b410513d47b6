"""Shapes with several judged answers (HelpSteer, UltraFeedback, rankings), and GSM8K with its checkable answer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from assent.data.formats.fields import answer, check_answer, check_prompt, pair_example, same_answer, text_prompt
from assent.data.formats.message import messages
from assent.data.formats.values import Row, get, in_words, listed, number, text
from assent.data.records import Critique, Example, Feedback, Message, Origin, Pair, Ranking, Rating, Response, RowError

HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _marked_prompt(value: object, column: str) -> tuple[Message, ...]:
    """HelpSteer2's prompt: later turns stand behind lines "<extra_id_1>Assistant" and "<extra_id_1>User"."""
    first, *pieces = re.split(r"\n?<extra_id_1>(User|Assistant)\n", text(value, column))
    turns = [Message("user", text(first, column))] if first.strip() else []
    for name, content in zip(pieces[::2], pieces[1::2], strict=True):
        turns.append(Message(name.lower(), text(content, column)))
    return check_prompt(turns, column)


def helpsteer2(row: Row, origin: Origin) -> Example:
    """One rated answer; consecutive rows of one prompt are merged when the file is loaded."""
    prompt = _marked_prompt(get(row, "prompt"), "prompt")
    response = answer(get(row, "response"), "response")
    scores = {name: number(get(row, name), name, 0, 4) for name in HELPSTEER_ATTRIBUTES}
    return Example(prompt, (response,), (Rating(0, scores),), origin)


def helpsteer2_preference(row: Row, origin: Origin) -> Example:
    prompt = _marked_prompt(get(row, "prompt"), "prompt")
    return _signed_pair(row, prompt, ("response_1", "response_2"), "preference_strength", origin)


def helpsteer3_preference(row: Row, origin: Origin) -> Example:
    prompt = check_prompt(messages(get(row, "context"), "context"), "context")
    return _signed_pair(row, prompt, ("response1", "response2"), "overall_preference", origin)


def helpsteer3_votes(row: Row, origin: Origin) -> Example:
    """The same by up to three people, each with a score of the same scale; who they are is not said."""
    prompt = check_prompt(messages(get(row, "context"), "context"), "context")
    column = "individual_preference"
    votes, said = [], []
    for index, vote in enumerate(listed(get(row, column), column)):
        if not isinstance(vote, Mapping):
            raise RowError(f"{column}[{index}]", f"expected an object with score, got {in_words(vote)}")
        votes.append(_signed(vote.get("score"), f"{column}[{index}].score"))
        said.append({name: value for name, value in vote.items() if name != "score"})
    responses = _two_answers(row, ("response1", "response2"))
    return Example(prompt, responses, tuple(votes), origin, {column: said} if any(said) else {})


def _signed_pair(
    row: Row,
    prompt: tuple[Message, ...],
    columns: tuple[str, str],
    verdict: str,
    origin: Origin,
) -> Example:
    return Example(prompt, _two_answers(row, columns), (_signed(get(row, verdict), verdict),), origin)


def _two_answers(row: Row, columns: tuple[str, str]) -> tuple[Response, ...]:
    responses = tuple(answer(get(row, column), column) for column in columns)
    if same_answer(*responses):
        raise RowError(columns[1], f"equal to {columns[0]}")
    return responses


def _signed(value: object, column: str) -> Feedback:
    """A verdict from -3 (the first answer is much better) to 3; 0 is a tie, kept as a one-level ranking."""
    strength = number(value, column, -3, 3)
    better, worse = (0, 1) if strength < 0 else (1, 0)
    return Pair(better, worse, abs(strength)) if strength else Ranking(((0, 1),))


def ultrafeedback(row: Row, origin: Origin) -> Example:
    """Several rated answers: `completions[i].annotations[attribute].Rating`; "N/A" is no rating."""
    prompt = (Message("user", text(get(row, "instruction"), "instruction")),)
    responses: list[Response] = []
    feedback: list[Feedback] = []
    for index, item in enumerate(listed(get(row, "completions"), "completions")):
        where = f"completions[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(where, f"expected an object with response and annotations, got {in_words(item)}")
        model = None if item.get("model") is None else text(item["model"], f"{where}.model")
        responses.append(answer(item.get("response"), f"{where}.response", source=model))
        scores = _annotations(item.get("annotations"), f"{where}.annotations")
        if scores:
            feedback.append(Rating(index, scores))
        if isinstance(item.get("critique"), str) and item["critique"].strip():
            feedback.append(Critique(index, text(item["critique"], f"{where}.critique")))
    return Example(prompt, tuple(responses), tuple(feedback), origin)


def _annotations(value: object, column: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise RowError(column, f"expected an object, got {in_words(value)}")
    scores = {}
    for name, annotation in value.items():
        where = f"{column}.{name}"
        if not isinstance(annotation, Mapping):
            raise RowError(where, f"expected an object with Rating, got {in_words(annotation)}")
        rating = annotation.get("Rating")
        if rating in (None, "N/A"):
            continue
        try:
            rating = float(rating)
        except (TypeError, ValueError, OverflowError):
            raise RowError(f"{where}.Rating", f"expected a number, got {in_words(rating)}") from None
        scores[name] = number(rating, f"{where}.Rating")
    return scores


def ranked(row: Row, origin: Origin) -> Example:
    """`completions[i]` = {rank, completion}; the lowest rank is the best, equal ranks are tied."""
    context = get(row, "context")
    is_list = isinstance(context, list | tuple)
    prompt = check_prompt(messages(context, "context"), "context") if is_list else text_prompt(context, "context")
    responses: list[Response] = []
    by_rank: dict[float, list[int]] = defaultdict(list)
    for index, item in enumerate(listed(get(row, "completions"), "completions")):
        where = f"completions[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(where, f"expected an object with rank and completion, got {in_words(item)}")
        by_rank[number(item.get("rank"), f"{where}.rank")].append(index)
        value = item.get("completion")
        if isinstance(value, str):
            responses.append(answer(value, f"{where}.completion"))
        else:
            turns = messages(value, f"{where}.completion")
            responses.append(Response(check_answer(turns, f"{where}.completion", prompt[-1].role)))
    levels = tuple(tuple(by_rank[rank]) for rank in sorted(by_rank))
    return Example(prompt, tuple(responses), (Ranking(levels),), origin)


def best_of(row: Row, origin: Origin) -> Example:
    """Lists of right and wrong answers (RewardBench 2): every right one is better than every wrong one."""
    prompt = text_prompt(get(row, "prompt"), "prompt")
    groups = [
        [answer(value, f"{column}[{index}]") for index, value in enumerate(listed(get(row, column), column))]
        for column in ("chosen", "rejected")
    ]
    cut = len(groups[0])
    levels = (tuple(range(cut)), tuple(range(cut, cut + len(groups[1]))))
    if all(len(group) == 1 for group in groups):
        return pair_example(prompt, groups[0][0], groups[1][0], origin)
    return Example(prompt, tuple(groups[0] + groups[1]), (Ranking(levels),), origin)


def gsm8k(row: Row, origin: Origin) -> Example:
    """The worked solution without its <<calculator>> marks; `meta["final_answer"]` is the number after "####"."""
    prompt = (Message("user", text(get(row, "question"), "question")),)
    solution = text(get(row, "answer"), "answer")
    steps, mark, final = solution.rpartition("####")
    final = final.strip().replace(",", "").replace("$", "").removesuffix(".")
    if not mark or not final or not steps.strip():
        raise RowError("answer", 'expected a solution that ends with "#### number"')
    response = answer(re.sub(r"<<[^<>]*>>", "", solution), "answer")
    return Example(prompt, (response,), (), origin, {"answer": solution, "final_answer": final})
