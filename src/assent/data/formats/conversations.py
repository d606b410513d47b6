"""Shapes that hold a conversation or an instruction: ShareGPT, OpenAI messages, Alpaca."""

from __future__ import annotations

from assent.data.formats.fields import (
    Row,
    answer,
    boolean,
    check_answer,
    check_prompt,
    get,
    listed,
    message,
    messages,
    optional_text,
    pair_example,
    rest,
    split_first,
    split_last,
    text,
    with_system,
)
from assent.data.records import Binary, Example, Message, Origin, Response, RowError


def sharegpt(row: Row, origin: Origin) -> Example:
    turns = with_system(messages(get(row, "conversations"), "conversations"), row)
    prompt, response = split_first(turns, "conversations")
    return Example(prompt, (response,), (), origin, rest(row, ("conversations", "system")))


def sharegpt_binary(row: Row, origin: Origin) -> Example:
    turns = with_system(messages(get(row, "conversations"), "conversations"), row)
    prompt, response = split_last(turns, "conversations")
    label = boolean(get(row, "kto_tag"), "kto_tag")
    meta = rest(row, ("conversations", "system", "kto_tag"))
    return Example(prompt, (response,), (Binary(0, label),), origin, meta)


def sharegpt_preference(row: Row, origin: Origin) -> Example:
    turns = with_system(messages(get(row, "conversations"), "conversations"), row)
    prompt = check_prompt(turns, "conversations")
    chosen, rejected = (
        Response(check_answer((message(get(row, column), column),), column, prompt[-1].role))
        for column in ("chosen", "rejected")
    )
    meta = rest(row, ("conversations", "system", "chosen", "rejected"))
    return pair_example(prompt, chosen, rejected, origin, meta=meta)


def openai_messages(row: Row, origin: Origin) -> Example:
    prompt, response = split_first(messages(get(row, "messages"), "messages"), "messages")
    return Example(prompt, (response,), (), origin, rest(row, ("messages",)))


def openai_binary(row: Row, origin: Origin) -> Example:
    prompt, response = split_last(messages(get(row, "messages"), "messages"), "messages")
    label = boolean(get(row, "label"), "label")
    return Example(prompt, (response,), (Binary(0, label),), origin, rest(row, ("messages", "label")))


def openai_rejected(row: Row, origin: Origin) -> Example:
    """`messages` ends with the chosen answer; the rejected one is a string, or a whole second conversation."""
    turns = messages(get(row, "messages"), "messages")
    prompt, chosen = split_last(turns, "messages")
    used = ("messages", "rejected_response", "rejected_messages")
    if row.get("rejected_messages") is not None:
        other = messages(row["rejected_messages"], "rejected_messages")
        other_prompt, rejected = split_last(other, "rejected_messages")
        if other_prompt != prompt:
            raise RowError("rejected_messages", "the prompts differ: not the turns of messages before its answer")
    else:
        rejected = answer(get(row, "rejected_response"), "rejected_response")
    return pair_example(prompt, chosen, rejected, origin, meta=rest(row, used))


def _alpaca_prompt(row: Row) -> tuple[Message, ...]:
    """instruction + newline + input, after the earlier turns of `history` and the `system` message."""
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
    return with_system(tuple(turns), row)


ALPACA_PROMPT = ("instruction", "input", "system", "history")


def alpaca(row: Row, origin: Origin) -> Example:
    prompt = _alpaca_prompt(row)
    return Example(prompt, (answer(get(row, "output"), "output"),), (), origin, rest(row, (*ALPACA_PROMPT, "output")))


def alpaca_binary(row: Row, origin: Origin) -> Example:
    prompt, response = _alpaca_prompt(row), answer(get(row, "output"), "output")
    label = boolean(get(row, "kto_tag"), "kto_tag")
    meta = rest(row, (*ALPACA_PROMPT, "output", "kto_tag"))
    return Example(prompt, (response,), (Binary(0, label),), origin, meta)


def alpaca_preference(row: Row, origin: Origin) -> Example:
    prompt = _alpaca_prompt(row)
    chosen, rejected = answer(get(row, "chosen"), "chosen"), answer(get(row, "rejected"), "rejected")
    return pair_example(prompt, chosen, rejected, origin, meta=rest(row, (*ALPACA_PROMPT, "chosen", "rejected")))
