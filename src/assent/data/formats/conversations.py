"""Shapes that hold a conversation or an instruction: ShareGPT, OpenAI messages, Alpaca."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from assent.data.formats.fields import answer, check_answer, check_prompt, pair_example, split_first, split_last
from assent.data.formats.message import message, messages, with_thoughts
from assent.data.formats.pairs import THOUGHTS, strength_of
from assent.data.formats.values import Row, boolean, get, listed, optional_text, text
from assent.data.records import Binary, Example, Message, Origin, Rating, Response, RowError


def _conversation(column: str, row: Row, origin: Origin) -> Example:
    """A conversation that ends with an answer; one that ends with a question is a prompt."""
    turns = messages(get(row, column), column)
    if turns[-1].role != "assistant":
        return Example(check_prompt(turns, column), (), (), origin)
    prompt, response = split_first(turns, column)
    return Example(prompt, (response,), (), origin)


def _judged_conversation(column: str, verdict: str, row: Row, origin: Origin) -> Example:
    prompt, response = split_last(messages(get(row, column), column), column)
    return Example(prompt, (response,), (Binary(0, boolean(get(row, verdict), verdict)),), origin)


def sharegpt(row: Row, origin: Origin) -> Example:
    return _conversation("conversations", row, origin)


def steerlm(row: Row, origin: Origin) -> Example:
    """NeMo's rows: VALUE_TO_TEXT labels say what each answer is that is then learnt; TEXT_TO_VALUE ones are ratings."""
    kind, mask = text(get(row, "type"), "type"), text(get(row, "mask"), "mask")
    if kind not in ("VALUE_TO_TEXT", "TEXT_TO_VALUE"):
        raise RowError("type", f"expected VALUE_TO_TEXT or TEXT_TO_VALUE, got {kind!r:.40}")
    if mask.lower() != "user":
        raise RowError("mask", f"expected User, whose turns are only read, got {mask!r:.40}")
    turns = messages([_labelled(turn) for turn in listed(get(row, "conversations"), "conversations")], "conversations")
    if kind == "VALUE_TO_TEXT":
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and not turn.attributes:
                raise RowError(f"conversations[{index}].label", "expected name:value,..., what the answer is")
        prompt, response = split_first(turns, "conversations")
        return Example(prompt, (response,), (), origin)
    scores = dict(turns[-1].attributes)
    if not scores:
        raise RowError(f"conversations[{len(turns) - 1}].label", "expected name:value,..., ratings of the last answer")
    prompt, response = split_last([replace(turn, attributes=()) for turn in turns], "conversations")
    return Example(prompt, (response,), (Rating(0, scores),), origin)


def _labelled(turn: object) -> object:
    """A turn of NeMo's with its label as every message has it."""
    if not isinstance(turn, Mapping):
        return turn
    speaker = turn.get("from")
    named = {"from": speaker.lower() if isinstance(speaker, str) else speaker, "attributes": turn.get("label")}
    return {name: value for name, value in turn.items() if name != "label"} | named


def sharegpt_binary(row: Row, origin: Origin) -> Example:
    return _judged_conversation("conversations", "kto_tag", row, origin)


def sharegpt_preference(row: Row, origin: Origin) -> Example:
    prompt = check_prompt(messages(get(row, "conversations"), "conversations"), "conversations")
    chosen, rejected = (
        Response(check_answer((message(get(row, column), column),), column, prompt[-1].role))
        for column in ("chosen", "rejected")
    )
    return pair_example(prompt, chosen, rejected, origin, *strength_of(row))


def openai_messages(row: Row, origin: Origin) -> Example:
    return _conversation("messages", row, origin)


def openai_binary(row: Row, origin: Origin) -> Example:
    return _judged_conversation("messages", "label", row, origin)


def openai_rejected(row: Row, origin: Origin) -> Example:
    """`messages` ends with the chosen answer; the rejected one is a string, or a whole second conversation."""
    prompt, chosen = split_last(messages(get(row, "messages"), "messages"), "messages")
    if row.get("rejected_messages") is not None:
        if row.get("rejected_response") is not None:
            raise RowError("rejected_response", "there is rejected_messages as well; which one is right?")
        other = messages(row["rejected_messages"], "rejected_messages")
        other_prompt, rejected = split_last(other, "rejected_messages")
        if other_prompt != prompt:
            raise RowError("rejected_messages", "the prompts differ: not the turns of messages before its answer")
    elif isinstance(get(row, "rejected_response"), list | tuple):
        turns = messages(row["rejected_response"], "rejected_response")
        rejected = Response(check_answer(turns, "rejected_response", prompt[-1].role))
    else:
        rejected = answer(row["rejected_response"], "rejected_response")
    return pair_example(prompt, chosen, rejected, origin, *strength_of(row))


def _alpaca_prompt(row: Row) -> tuple[Message, ...]:
    """instruction + newline + input, after the earlier turns of `history`."""
    turns: list[Message] = []
    for index, past in enumerate(listed(row["history"], "history") if row.get("history") else ()):
        where = f"history[{index}]"
        if len(listed(past, where)) != 2:
            raise RowError(where, f"expected [question, answer], got {len(past)} entries")
        turns.append(Message("user", text(past[0], f"{where}[0]")))
        turns.append(Message("assistant", text(past[1], f"{where}[1]")))
    question = text(get(row, "instruction"), "instruction")
    extra = optional_text(row, "input")
    turns.append(Message("user", f"{question}\n{extra}" if extra.strip() else question))
    return tuple(turns)


def alpaca(row: Row, origin: Origin) -> Example:
    response = with_thoughts(answer(get(row, "output"), "output"), row)
    return Example(_alpaca_prompt(row), (response,), (), origin)


def alpaca_binary(row: Row, origin: Origin) -> Example:
    prompt, response = _alpaca_prompt(row), with_thoughts(answer(get(row, "output"), "output"), row, THOUGHTS)
    return Example(prompt, (response,), (Binary(0, boolean(get(row, "kto_tag"), "kto_tag")),), origin)


def alpaca_preference(row: Row, origin: Origin) -> Example:
    chosen, rejected = answer(get(row, "chosen"), "chosen"), answer(get(row, "rejected"), "rejected")
    return pair_example(_alpaca_prompt(row), chosen, rejected, origin, *strength_of(row))
