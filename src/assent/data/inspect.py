"""`assent data FILE`: what a file holds, what would be trained, and every row that cannot be."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from assent.config import InspectConfig, SamplingConfig
from assent.data import views
from assent.data.attributes import AttributeView
from assent.data.chat import Chat
from assent.data.dataset import count_reasons, lengths
from assent.data.fit import fitted
from assent.data.formats import FORMATS, load_examples
from assent.data.records import Example, Message, Origin, Pair, Problem
from assent.data.tree import TokenTree
from assent.data.turns import choose_turns
from assent.data.views import Projected, binary_view, pair_view, prompt_view, ranking_view, rating_view, sft_view
from assent.errors import DataError, ModelError
from assent.foreign import brief

ONLINE = "ppo"
VIEWS: dict[str, Callable[[Sequence[Example]], Projected]] = {
    "sft": sft_view,
    "reward, dpo": pair_view,
    "reward-attributes": AttributeView(),
    "kto": partial(binary_view, threshold=0.0),  # any threshold would do: which answers reach it is not counted
    "reward-ranking, pl-dpo": ranking_view,
    "nca": rating_view,
    ONLINE: prompt_view,
}
"""What an example is projected to, by the commands that train on it; a command stands for all of its kind."""
SHOWN = 700  # characters of one span in a preview


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a preview. `trained`: the model learns to write it; `ended`: its last token ends the turn."""

    label: str
    text: str
    trained: bool
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """How many examples a command can train on (of how many that it has a use for: with a model, some are too long),
    why not the others, and how feedback of another kind is read."""

    commands: str
    examples: int
    of: int
    reasons: dict[str, int]
    readings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a data file holds. Lengths are in `unit`: tokens with a model, else characters. `kept` are the columns that
    are not part of the conversation or the feedback."""

    file: str
    format: str
    rows: int
    examples: int
    contents: dict[str, int]
    kept: tuple[str, ...]
    uses: tuple[Use, ...]
    unit: str
    lengths: dict[str, dict[str, float]]
    max_length: int
    cut: int
    shortened: int
    previews: tuple[tuple[Origin, tuple[Span, ...]], ...]
    problems: tuple[Problem, ...]


def inspect_file(config: InspectConfig) -> Inspection:
    """Inspects a file and prints what was found."""
    inspection = inspect(config)
    render(inspection, Console(file=sys.stdout), listed=config.problems)
    return inspection


def inspect(config: InspectConfig) -> Inspection:
    """Reads a data file as training would; with `config.model` also as tokens, else lengths are characters.

    Errors: `DataError` for a file that cannot be read or has no known shape, `ModelError` for a model without a usable
    tokenizer.
    """
    chat = _load_chat(config) if config.model is not None else None
    loaded = load_examples(
        config.file, format=config.format, columns=config.columns, split=config.split, limit=config.limit
    )
    examples = choose_turns(loaded.examples, config.turns)
    if chat is None:
        sizes = [(_characters(e.prompt), [_characters(r.messages) for r in e.responses]) for e in examples]
        unfit, cut, shortened = list[Problem](), 0, 0
        previews = [(e.origin, tuple(_message_spans(e))) for e in examples[: config.show]]
    else:
        fit = fitted(chat, examples, config.max_length, config.long)
        sizes, unfit, shortened = fit.sizes, fit.problems, fit.shortened
        cut = sum(int(branch.ids[-1]) not in chat.eos_ids for tree in fit.trees for branch in tree.branches)
        shown = list(zip(fit.examples, fit.trees, strict=True))[: config.show]
        previews = [(example.origin, tuple(_token_spans(chat, example, tree))) for example, tree in shown]
    return Inspection(
        file=config.file,
        format=loaded.format,
        rows=loaded.num_rows,
        examples=len(examples),
        contents=_contents(examples) | _rendered(examples, chat),
        kept=tuple(dict.fromkeys(name for example in examples for name in example.meta)),
        uses=tuple(_use(commands, loaded.examples, chat, config) for commands in VIEWS),
        unit="characters" if chat is None else "tokens",
        lengths={
            "prompt": lengths([prompt for prompt, _ in sizes]),
            "response": lengths([size for _, responses in sizes for size in responses]),
            "both": lengths([prompt + size for prompt, responses in sizes for size in responses]),
        },
        max_length=config.max_length,
        cut=cut,
        shortened=shortened,
        previews=tuple(previews),
        problems=tuple(
            sorted([*loaded.problems, *unfit], key=lambda problem: (problem.origin.file, problem.origin.row))
        ),
    )


def _rendered(examples: Sequence[Example], chat: Chat | None) -> dict[str, int]:
    count = sum(chat.looks_rendered(example) for example in examples) if chat is not None else 0
    advice = "" if chat is None or chat.rendered else " (--rendered takes them as they are)"
    return {f"with text that a template has written already{advice}": count} if count else {}


def _load_chat(config: InspectConfig) -> Chat:
    model = config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # missing folder, no network, broken json: the library's types differ
        raise ModelError(f"--model {model}: no tokenizer can be loaded: {brief(error)}.") from error
    return Chat(tokenizer, config.chat_template, config.template_kwargs, rendered=config.rendered)


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(text) for message in messages for _, text in _parts(message))


def _parts(message: Message) -> list[tuple[str, str]]:
    """What a message says, with a label for each part."""
    parts = [("reasoning", message.reasoning)] if message.reasoning is not None else []
    parts += [("", message.content)] if message.content or not message.tool_calls else []
    return parts + [(f"call {call.name}", call.arguments) for call in message.tool_calls]


def _all_messages(example: Example) -> list[Message]:
    return [*example.prompt, *(message for response in example.responses for message in response.messages)]


def _contents(examples: Sequence[Example]) -> dict[str, int]:
    """Counts of what the examples have, without what none has."""
    counts = {
        "different prompts": len({(example.prompt, example.tools) for example in examples if example.prompt}),
        "with a system message": sum(any(m.role == "system" for m in example.prompt) for example in examples),
        "with earlier turns": sum(any(m.role == "assistant" for m in example.prompt) for example in examples),
        "responses": sum(len(example.responses) for example in examples),
        "responses of several turns": sum(len(r.messages) > 1 for example in examples for r in example.responses),
        "with tools": sum(example.tools is not None for example in examples),
        "with variables for the template": sum(bool(example.template_kwargs) for example in examples),
        "messages with tool calls": sum(bool(m.tool_calls) for example in examples for m in _all_messages(example)),
        "messages with reasoning": sum(m.reasoning is not None for example in examples for m in _all_messages(example)),
        "turns that are only read": sum(not m.trained for example in examples for m in _all_messages(example)),
    }
    for example in examples:
        for item in example.feedback:
            name = {"Pair": "pairs", "Ranking": "rankings", "Rating": "ratings", "Binary": "yes/no labels"}.get(
                type(item).__name__, "critiques"
            )
            counts[name] = counts.get(name, 0) + 1
    return {name: count for name, count in counts.items() if count}


def _use(commands: str, examples: Sequence[Example], chat: Chat | None, config: InspectConfig) -> Use:
    """What a command makes of these examples, with a model as tokens too, under the same options as training."""
    readings: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        """Takes what a view says once for training into the table instead."""
        assert isinstance(record.args, tuple)
        readings.append(str(record.args[-1]))
        return False

    log = logging.getLogger(views.__name__)
    log.addFilter(collect)
    try:
        fitting, problems = VIEWS[commands](examples)
    except DataError:
        return Use(commands, 0, 0, {})
    finally:
        log.removeFilter(collect)
    fitting = choose_turns(fitting, config.turns)
    usable = total = len(fitting)
    if chat is not None and fitting:
        room = SamplingConfig().max_new_tokens if commands == ONLINE else 0
        if room:
            readings.append(f"with room for {room:,} tokens of an answer (--sampling.max_new_tokens)")
        fit = fitted(chat, fitting, max(config.max_length - room, 1), config.long)
        usable = len(fit.trees)
        problems = [*problems, *fit.problems]
    return Use(commands, usable, total, count_reasons(problems), tuple(readings))


def _label(example: Example, index: int) -> str:
    for item in example.feedback:
        if isinstance(item, Pair) and index in (item.chosen, item.rejected):
            return "chosen" if index == item.chosen else "rejected"
    return "response" if len(example.responses) == 1 else f"response {index + 1}"


def _message_spans(example: Example) -> list[Span]:
    """Without a tokenizer: messages, by role."""
    spans = [Span("tools", example.tools, trained=False)] if example.tools is not None else []

    def add(message: Message, label: str, trained: bool) -> None:
        spans.extend(Span(" ".join(filter(None, (label, part))), text, trained) for part, text in _parts(message))

    for message in example.prompt:
        add(message, message.role, trained=False)
    for index, response in enumerate(example.responses):
        for message in response.messages:
            answers = message.role in ("assistant", "text")
            add(message, _label(example, index) if answers else message.role, answers and message.trained)
    return spans


def _token_spans(chat: Chat, example: Example, tree: TokenTree) -> list[Span]:
    """Tokens as text, control tokens included, in runs of trained and other tokens."""

    spans = [Span("prompt", chat.spell(tree.prompt), trained=False)]
    for index, branch in enumerate(tree.branches):
        cuts = [0, *(np.flatnonzero(np.diff(branch.trained)) + 1), len(branch)]
        for start, end in zip(cuts, cuts[1:], strict=False):
            trained = bool(branch.trained[start])
            ended = trained and int(branch.ids[end - 1]) in chat.end_ids
            label = _label(example, index) if trained else "between"
            spans.append(Span(label, chat.spell(branch.ids[start:end]), trained, ended))
    return spans


# ------------------------------------------------------------------------------------------------ what is printed


def render(inspection: Inspection, console: Console, listed: int = 20) -> None:
    """Prints an inspection; at most `listed` problem rows (0: all)."""
    console.print(_summary(inspection), "")
    if inspection.examples:
        console.print(_length_table(inspection))
    if inspection.unit == "characters":
        console.print("Give --model FOLDER to see tokens, and rows that are too long.", style="dim")
    limit = f"--max_length {inspection.max_length}"
    if inspection.cut:
        console.print(f"{inspection.cut:,} responses are cut at {limit}, without their EOS.\n", highlight=False)
    if inspection.shortened:
        console.print(f"{inspection.shortened:,} prompts lose their first turns to fit {limit}.\n", highlight=False)
    for origin, spans in inspection.previews:
        console.print(_preview(origin, spans))
    if inspection.previews:
        console.print(_legend(inspection), "")
    _print_problems(inspection, console, listed)


def _summary(inspection: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("file", Text(inspection.file))
    table.add_row("shape", Text(f"{inspection.format}: {FORMATS[inspection.format].description}"))
    bad = len({problem.origin for problem in inspection.problems})
    rows = Text(f"{inspection.rows:,} rows, {inspection.examples:,} examples, ")
    rows.append(f"{bad:,} problem rows" if bad else "no problem rows", style="bold red" if bad else "green")
    table.add_row("rows", rows)
    held = [f"{count:,} {name}" for name, count in inspection.contents.items()]
    table.add_row("holds", ", ".join(held))
    if inspection.kept:
        names = ", ".join(_visible(name) for name in inspection.kept)
        table.add_row("kept", Text(f"{names} (columns for rewards, rules and the curriculum)"))
    for use in inspection.uses:
        of = f" of {use.of:,}" if use.examples < use.of else ""
        text = Text(f"{use.examples:,}{of} examples" if use.of else "none", style="" if use.examples else "dim")
        for reading in use.readings:
            text.append(f"\n{reading}", style="dim")
        for reason, count in use.reasons.items():
            text.append(f"\n{count:,} not: {reason}", style="dim")
        table.add_row(f"for {use.commands}", text)
    return table


def _length_table(inspection: Inspection) -> Table:
    """Of whole rows, before any cut; a line for each number, so that the largest fit on a narrow terminal."""
    table = Table(box=box.SIMPLE_HEAD, title=f"lengths in {inspection.unit}", title_justify="left", title_style="bold")
    columns = {"mean": "mean", "p0": "min", "p10": "10 %", "p50": "median", "p90": "90 %", "p99": "99 %",
               "p100": "max", "total": "total"}  # fmt: skip
    parts = {part: values for part, values in inspection.lengths.items() if values}
    table.add_column("")
    for part in parts:
        table.add_column(part, justify="right")
    for key, name in columns.items():
        table.add_row(name, *(f"{values[key]:,.{int(key == 'mean')}f}" for values in parts.values()))
    return table


def _preview(origin: Origin, spans: Sequence[Span]) -> Panel:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for span in spans:
        style = "green" if span.trained else "dim"
        text = Text.assemble((_shortened(_visible(span.text)), style), (" ■" if span.ended else "", "bold green"))
        grid.add_row(Text(span.label, style=style), text)
    return Panel(grid, title=Text(str(origin)), title_align="left", border_style="dim")


def _legend(inspection: Inspection) -> Text:
    end = (", ", ("■", "bold green"), " ends a turn and is trained too") if inspection.unit == "tokens" else ()
    letters = any("⟪" in span.text for _, spans in inspection.previews for span in spans)
    also = (", ⟪…⟫ spells a control token in letters",) if letters else ()
    return Text.assemble(("green", "green"), " is trained, ", ("dim", "dim"), " is only read", *end, *also)


def _print_problems(inspection: Inspection, console: Console, listed: int) -> None:
    if not inspection.problems:
        return
    shown = inspection.problems[: listed or None]
    table = Table(box=box.SIMPLE_HEAD, title="problem rows", title_justify="left", title_style="bold red")
    table.add_column("row", no_wrap=True, overflow="fold")
    table.add_column("column")
    table.add_column("reason", overflow="fold")
    for problem in shown:
        alone = problem.origin.file == inspection.file
        table.add_row(
            Text(str(problem.origin.row if alone else problem.origin)),
            Text(_visible(problem.column or "")),
            Text(_visible(problem.reason)),
        )
    reasons = Table.grid(padding=(0, 2))
    reasons.add_column(justify="right")
    reasons.add_column()
    for reason, count in count_reasons(inspection.problems).items():
        reasons.add_row(f"{count:,}", Text(_visible(reason)))
    console.print(Group(table, reasons))
    if len(shown) < len(inspection.problems):
        console.print(
            f"{len(inspection.problems) - len(shown):,} more: --problems 0 lists all.", style="dim", highlight=False
        )


def _visible(text: str) -> str:
    """Characters that would act on a terminal, as escapes (data must not write to the screen itself), and newlines at
    the end, which would not be seen."""
    body = text.rstrip("\n")
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in body)
    return shown + "↵" * (len(text) - len(body))


def _shortened(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]}\n[… {len(text) - SHOWN:,} characters …]\n{text[-SHOWN // 2 :]}"
