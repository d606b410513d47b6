"""A chat template: conversations become text by it, and it is asked what it does with what it is given.

Nothing that a row holds may get lost on the way without a word. So a conversation is rendered twice, once with marks
around each of its texts: where the marks are found afterwards is where the template put the text, and what stands
between and beside them must be that text. What a template drops, changes or reads from no message is a `RowError` that
names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2.meta
import jinja2.nodes
from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from assent.data.marks import Place, Text, collect, placed
from assent.data.records import Message, RowError, ToolCall
from assent.data.sandbox import Bounded, Limit
from assent.data.steering import ANSWER, steering_of
from assent.errors import ConfigError, ModelError
from assent.files import not_a_file
from assent.foreign import brief
from assent.names import suggestion

FOLDER = Path(__file__).parent / "templates"

JOINED = (
    "{%- if messages | length > 2 or messages[0]['role'] != 'user' -%}{{- raise_exception('the tokenizer has no chat "
    "template, so only a single user message can be a prompt; give a template with --model.chat_template FILE') -}}"
    "{%- endif -%}{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"
)
"""For tokenizers without a chat template: the prompt's text, then the answer's."""

RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", ANSWER}
"""What is given to every template by other means than its variables."""

REASONING = ("reasoning_content", "thinking")
"""Under which keys a message's reasoning is given, as transformers does."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template is given: messages as mappings, tools, variables, and which messages are only context (of them,
    reasoning may be left out)."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    context: frozenset[int] = frozenset()


def builtin_names() -> list[str]:
    """Templates that come with assent."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def choices() -> str:
    """The sentence that says what can be chosen."""
    return f"Choose one with --model.chat_template: {', '.join(builtin_names())}, or a Jinja file."


class Template:
    """The chat template of a tokenizer. `chosen` (a built-in name or a file) replaces the tokenizer's own; `variables`
    become its defaults, so that they are saved with it. Without any template, texts are joined as they are.

    Errors: `ConfigError` for a choice or a variable that cannot be, `ModelError` for a template that is unusable."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chosen: str | Path | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.source = str(chosen or tokenizer.name_or_path or "the tokenizer")
        if chosen is not None:
            tokenizer.chat_template = _chosen(chosen, tokenizer)
        self.joined = None if tokenizer.chat_template else self._joined()
        own = tokenizer.chat_template or self.joined or ""
        self.text = "\n".join(own.values()) if isinstance(own, dict) else str(own)
        self.steering = steering_of(tokenizer.chat_template)
        self._as_parts = self._text_arguments = False
        if variables:
            self._check_variables(variables, "--model.template_kwargs")
            tokenizer.chat_template = _with_defaults(tokenizer.chat_template, variables)
        self._learn_forms()

    # ------------------------------------------------------------------------------------------------ rendering

    def conversation(
        self,
        messages: Sequence[Message],
        tools: str | None = None,
        variables: Mapping[str, Any] | None = None,
        context: frozenset[int] = frozenset(),
    ) -> Conversation:
        """The messages as the template is given them."""
        if variables:
            self._check_variables(variables, None)
        listed = _parsed(tools, "tools") if tools else None
        made = [self._mapping(message, index) for index, message in enumerate(messages)]
        return Conversation(made, listed or None, variables or {}, context)

    def render(self, talk: Conversation, generate: bool, column: str) -> str:
        """What the template writes; with `generate` up to where an answer begins."""
        try:
            return self.tokenizer.apply_chat_template(
                talk.messages,
                tools=talk.tools,
                chat_template=self.joined,
                tokenize=False,
                add_generation_prompt=generate,
                **talk.variables,
            )
        except (Limit, RecursionError, MemoryError, OverflowError) as error:
            what = f"the chat template of {self.source} cannot write the conversation"
            raise RowError(column, f"{what}: {brief(error)}") from None
        except Exception as error:  # a template is a program of others
            raise RowError(column, f"the chat template refuses the conversation: {brief(error)}") from None

    def place(self, talk: Conversation, rendered: str, generate: bool, column: str) -> list[Place | None]:
        """Where the texts of each message stand in `rendered`; None for a message without any. Raises `RowError` where
        one of them, or a tool, is missing or changed."""
        for middle in (False, True):
            texts: list[Text] = []
            marked = collect(talk, texts, rendered, middle=middle)
            try:
                found = placed(self.render(marked, generate, column), texts, rendered, talk)
            except RowError as error:
                if error.column == column:
                    continue  # marks are in this template's way
                raise
            if found is not None:
                return found
        texts = []
        collect(talk, texts, rendered, middle=False)
        found = placed(None, texts, rendered, talk)
        assert found is not None
        return found

    def _mapping(self, message: Message, index: int) -> dict[str, Any]:
        content: Any = message.content
        if self._as_parts:
            content = [{"type": "text", "text": content}]
        made: dict[str, Any] = {"role": message.role, "content": content}
        if message.reasoning is not None:
            made |= dict.fromkeys(self._reasoning_keys, message.reasoning)
        if message.tool_calls:
            column = f"messages[{index}].tool_calls"
            made["tool_calls"] = [
                {
                    "type": "function",
                    **({} if call.id is None else {"id": call.id}),
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments if self._text_arguments else _parsed(call.arguments, column),
                    },
                }
                for call in message.tool_calls
            ]
        if message.attributes:
            made["attributes"] = self._attributes(message, f"messages[{index}].attributes")
        optional = {"name": message.name, "tool_call_id": message.tool_call_id}
        return made | {key: value for key, value in optional.items() if value is not None}

    def _attributes(self, message: Message, column: str) -> dict[str, int]:
        """What an assistant turn is said to be, as the template is given it."""
        if self.steering is None:
            raise RowError(
                column, f"the chat template of {self.source} writes no attributes (assent steerlm makes one that does)"
            )
        try:
            return self.steering.checked(dict(message.attributes), whole=True)
        except ValueError as error:
            raise RowError(column, str(error)) from None

    @cached_property
    def _reasoning_keys(self) -> tuple[str, ...]:
        """`reasoning` is given only to templates that know none of the usual keys."""
        if not any(key in self.text for key in REASONING) and re.search(r"\breasoning\b", self.text):
            return (*REASONING, "reasoning")
        return REASONING

    # ------------------------------------------------------------------------------------------------ variables

    @cached_property
    def variables(self) -> list[str]:
        """What the template reads beside messages and tools."""
        environment = Bounded(extensions=[loopcontrols, Generation])
        try:
            tree = environment.parse(self.text)
        except (TemplateSyntaxError, RecursionError) as error:
            raise ModelError(f"the chat template of {self.source} is unusable: {brief(error)}") from None
        free = jinja2.meta.find_undeclared_variables(tree)
        names = list(tree.find_all(jinja2.nodes.Name))
        assigned = {name.name for name in names if name.ctx == "store"}
        asked = {
            test.node.name
            for test in tree.find_all(jinja2.nodes.Test)
            if test.name in ("defined", "undefined") and isinstance(test.node, jinja2.nodes.Name)
        }
        given = {"raise_exception", "strftime_now", "namespace", "dict", "range", "cycler", "joiner", "lipsum"}
        return sorted(free - (assigned - asked) - given - RESERVED - set(self.tokenizer.special_tokens_map))

    def _check_variables(self, given: Mapping[str, Any], flag: str | None) -> None:
        for name in given:
            if name not in self.variables:
                known = f"It reads: {', '.join(self.variables)}." if self.variables else "It reads no variables."
                reason = f"the chat template has no variable '{name}'.{suggestion(name, self.variables)} {known}"
                if flag is None:
                    raise RowError("chat_template_kwargs", reason)
                raise ConfigError(f"{flag} {name}: {reason}")
        if self.steering is not None:
            try:
                self.steering.checked({name: value for name, value in given.items() if name in self.steering.names})
            except ValueError as error:
                if flag is None:
                    raise RowError("chat_template_kwargs", str(error)) from None
                raise ConfigError(f"{flag}: {error}.") from None

    def switch(self, talk: Conversation, fits: Any) -> str | None:
        """A variable about thinking with which `fits(conversation)` holds, as it is written on the command line."""
        for name in self.variables:
            for value in (False, True):
                if "think" in name and fits(replace(talk, variables={**talk.variables, name: value})):
                    return f"--model.template_kwargs {name}:{str(value).lower()}"
        return None

    # ------------------------------------------------------------------------------------------------ what it needs

    def _joined(self) -> str:
        first = self.tokenizer("a")["input_ids"][:1]
        adds_bos = self.tokenizer.bos_token_id is not None and first == [self.tokenizer.bos_token_id]
        return ("{{- bos_token -}}" if adds_bos else "") + JOINED

    def _learn_forms(self) -> None:
        """Whether contents must be lists of parts, and arguments of tool calls text."""
        question, answer = Message("user", "Question?"), Message("assistant", "Certainly.")
        refusal: RowError | None = None
        for self._as_parts in (False, True):
            try:
                if answer.content in self.render(self.conversation((question, answer)), False, "response"):
                    break
            except RowError as error:
                refusal = refusal or error
        else:
            if refusal is not None:
                raise ModelError(f"the chat template of {self.source} is unusable: {refusal.reason}")
            raise ModelError(f"the chat template of {self.source} leaves out the assistant's text.")
        call = ToolCall("lookup", '{"word": "egg"}')
        asked = (question, Message("assistant", "", tool_calls=(call,)))
        for self._text_arguments in (False, True):
            try:
                talk = self.conversation(asked)
                self.place(talk, self.render(talk, False, "response"), False, "response")
                return
            except RowError:
                continue
        self._text_arguments = False


def _parsed(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError(column, f"is not JSON: {error}") from None


class Generation(Extension):
    """Training templates stand their answers between {% generation %} and {% endgeneration %}."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _chosen(chosen: str | Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a built-in template or of a file."""
    if str(chosen) not in builtin_names():
        if (kind := not_a_file(chosen)) is not None:
            raise ConfigError(f"--model.chat_template {chosen} is {kind}; expected a file.")
        try:
            return Path(chosen).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = f"Built in are: {', '.join(builtin_names())}."
            near = suggestion(str(chosen), builtin_names())
            raise ConfigError(f"--model.chat_template {chosen} cannot be read: {error}.{near} {known}") from None
    text = (FOLDER / f"{chosen}.jinja").read_text(encoding="utf-8")
    needed = re.findall(r"<[|｜][^|｜<>]+[|｜]>|<(?:start|end)_of_turn>", text)
    missing = [token for token in dict.fromkeys(needed) if token not in tokenizer.added_tokens_encoder]
    if missing:
        raise ConfigError(
            f"--model.chat_template {chosen} needs control tokens that the tokenizer lacks: {', '.join(missing)}. "
            "Choose plain, which needs none, or a template of the tokenizer's own tokens."
        )
    return text


def _with_defaults(template: Any, variables: Mapping[str, Any]) -> Any:
    """The template with these values where nothing else is given."""
    if isinstance(template, dict):
        return {name: _with_defaults(text, variables) for name, text in template.items()}
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value, ensure_ascii=False)} %}}{{%- endif %}}"
        for name, value in variables.items()
    ]
    return "".join(lines) + "{{- '' }}" + template
