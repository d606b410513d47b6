"""Which assistant turns of a conversation are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from assent.data.records import Example, Message, Response

Turns = tuple[Message, ...]


def choose_turns(examples: Sequence[Example], turns: str) -> list[Example]:
    """The examples with what `--data.turns` asks for: "all" trained turns, the "last" of each response alone, or one
    example for "each" trained turn (its conversation ends with it), where there is one response without feedback."""
    if turns == "last":
        examples = [replace(e, responses=tuple(_last_only(response) for response in e.responses)) for e in examples]
    if turns == "each":
        return [one for example in examples for one in _each(example)]
    return [settled(example) for example in examples]


def trained_turns(messages: Sequence[Message]) -> list[int]:
    """Indices of the assistant messages that are trained."""
    return [index for index, message in enumerate(messages) if message.role == "assistant" and message.trained]


def settled(example: Example) -> Example:
    """The same with what all responses begin with, up to the first trained turn, as part of the prompt."""
    prompt, responses = example.prompt, example.responses
    if any(not response.messages or response.messages[0].role != "assistant" for response in responses):
        return example
    firsts = [(trained_turns(response.messages) or [0])[0] for response in responses]
    shared = min(firsts, default=0)
    while shared and len({response.messages[:shared] for response in responses}) > 1:
        shared -= 1
    while shared and any(response.messages[shared].role != "assistant" for response in responses):
        shared -= 1
    if not shared:
        return example
    kept = tuple(replace(response, messages=response.messages[shared:]) for response in responses)
    return replace(example, prompt=prompt + responses[0].messages[:shared], responses=kept)


def _last_only(response: Response) -> Response:
    before, last = response.messages[:-1], response.messages[-1:]
    return replace(response, messages=(*(_untrained(message) for message in before), *last))


def _untrained(message: Message) -> Message:
    return replace(message, trained=False) if message.role == "assistant" else message


def _each(example: Example) -> list[Example]:
    if len(example.responses) != 1 or example.feedback:
        return [example]
    (response,) = example.responses
    made = [
        replace(
            example,
            prompt=example.prompt + response.messages[:turn],
            responses=(replace(response, messages=(response.messages[turn],)),),
        )
        for turn in trained_turns(response.messages)
    ]
    return made or [example]
