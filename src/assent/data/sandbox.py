"""Limits for chat templates, which are programs of others.

transformers renders them in an environment of its own making, on top of Jinja's sandbox: what a template may reach is
limited there, how long it runs and how much it writes is not. The class below takes the sandbox's place, so that all
else stays transformers' own. Limits are counted, not timed, so that a row is refused on every machine or on none; the
clock only ends what goes round them.

Rounds of loops and calls of macros are counted. Texts and lists grow by what is stored and used again, so each stored
value is weighed, and so is the result of an operation that multiplies sizes before it is carried out.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from itertools import islice
from types import BuiltinMethodType, FunctionType
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers.utils import chat_template_utils

STEPS = 1_000_000
"""Rounds of loops and calls of macros in one conversation."""
LOOKS, SECONDS = 1024, 60.0
"""After how many of them the clock is looked at, and how long they may take."""
SIZE = 2**24
"""Characters of one value."""
ENTRIES = 200_000
"""Entries of one value, with those of the lists in it."""
PIECES = 64
"""How many pieces of what is written are weighed at once."""
BITS = 2**20
"""Of a whole number."""
GROWING = (nodes.Add, nodes.Call, nodes.Concat, nodes.Dict, nodes.Filter, nodes.List, nodes.Mod, nodes.Mul, nodes.Tuple)
LISTS, WRITERS = (list, tuple, dict, Namespace), (BuiltinMethodType, FunctionType)
WIDE = re.compile(r"%[^%a-zA-Z]*?(?:\*|[0-9]{5})|\{[^{}]*[0-9]{5}")
"""A width in a format that is no person's."""


class Limit(TemplateRuntimeError):
    """A template does or makes more than any conversation needs."""


class Bounded(ImmutableSandboxedEnvironment):
    """The sandbox with limits. Raises `Limit` where one is exceeded."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left, self.mark, self.ends = STEPS, STEPS - LOOKS, 0.0
        self.globals.pop("lipsum")
        self.filters = _Filters(self.filters | {"kept": self.kept})

    @property
    def begin(self) -> None:
        """A new rendering has all the steps."""
        self.left, self.mark, self.ends = STEPS, STEPS - LOOKS, 0.0

    @property
    def tick(self) -> bool:
        """One step less; True."""
        self.left -= 1
        if self.left < self.mark:
            self._look()
        return True

    def _look(self) -> None:
        now = time.monotonic()
        self.ends = self.ends or now + SECONDS
        if self.left < 0:
            raise Limit(f"more than {STEPS:,} steps")
        if now > self.ends:
            raise Limit(f"more than {SECONDS:g} seconds")
        self.mark = max(self.left - LOOKS, 0)

    def kept(self, value: Any) -> Any:
        """The value, if it is not too large."""
        if isinstance(value, str):
            _check(len(value))
        elif isinstance(value, LISTS):
            self.left -= weight(value) // 100
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        pieces = iter(pieces)
        made = some = [*islice(pieces, PIECES)]
        size = sum(map(len, some))
        while len(some) == PIECES and size <= SIZE:
            some = [*islice(pieces, PIECES)]
            size += sum(map(len, some))
            made += some
        if size > SIZE:
            _check(size)
        return "".join(made)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # named as Jinja names them
        kind = __obj.__class__
        if kind in WRITERS:
            owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
            if isinstance(owner, str) and (sizes := METHODS.get(__obj.__name__)) is not None:
                _check(sizes(owner, *args, **kwargs))
        elif args or len(kwargs) > 2:  # beside `caller` and `_loop_vars`
            __self.left -= 20  # about what the call of a macro takes
            for value in (*args, *kwargs.values()):
                __self.kept(value)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, str):
                _check(_formatted(left, right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > BITS:
                raise Limit("a number of too many digits")
        elif operator == "*":
            times, of = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and isinstance(of, Sized):
                _check(weight(of) * times)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        node: Any
        for node in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
            node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("tick")).set_lineno(node.lineno))
            if isinstance(node, nodes.For):
                node.iter = _weighed(node.iter)
                node.test = node.test and nodes.And(nodes.EnvironmentAttribute("tick"), node.test)
        for node in [*tree.find_all((nodes.Assign, nodes.With))]:
            if isinstance(node, nodes.With):
                node.values = [_weighed(value) for value in node.values]
            else:
                node.node = _weighed(node.node)
        tree.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("begin")).set_lineno(1))
        return tree.set_environment(self)  # type: ignore[return-value]


class _Filters(dict[str, Callable[..., Any]]):
    """Filters of which those that multiply sizes are limited, whoever puts them there."""

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        for name, function in filters.items():
            self[name] = function

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        super().__setitem__(name, _limited(function, FILTERS[name]) if name in FILTERS else function)


def _limited(function: Callable[..., Any], sizes: Callable[..., int]) -> Callable[..., Any]:
    skipped = int(hasattr(function, "jinja_pass_arg"))  # it is given the environment or the like first

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _check(sizes(*args[skipped:], **kwargs))
        return function(*args, **kwargs)

    return limited


chat_template_utils.ImmutableSandboxedEnvironment = Bounded


def _weighed(value: Any) -> Any:
    """An expression that is weighed when it is stored, if it can make something larger than what it is made of."""
    if not isinstance(value, GROWING) and not any(True for _ in value.find_all(GROWING)):
        return value
    return nodes.Filter(value, "kept", [], [], None, None).set_lineno(value.lineno)


def weight(value: Any) -> int:
    """Characters and entries of a value, written out: what stands in it twice counts twice."""
    total, seen, left = 0, 0, [value]
    while left:
        each = left.pop()
        seen += 1
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, Mapping):
            left += each.keys()
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
        elif isinstance(each, Namespace):
            left += each._Namespace__attrs.values()
        if seen + len(left) > ENTRIES:
            raise Limit(f"a list of more than {ENTRIES:,} entries")
        _check(total)
    return total + seen


def _check(size: int) -> None:
    if size > SIZE:
        raise Limit(f"a text of more than {SIZE:,} characters")


# ---- sizes of what operations make, before they are carried out


def _formatted(text: str, *values: Any, **named: Any) -> int:
    if WIDE.search(text):
        return SIZE + 1
    return len(text) + (text.count("%") + text.count("{")) * weight([*values, *named.values()])


def _replaced(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> int:
    return str(text).count(str(old)) * len(str(new))


def _joined(separator: Any, items: Any, *_: Any, **__: Any) -> int:
    return len(str(separator)) * len(items) + weight(items) if isinstance(items, Sized) else 0


def _indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    return (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(str(width)))


def _tabbed(text: str, tabsize: int = 8) -> int:
    return text.count("\t") * tabsize


def _padded(_: Any, width: Any = 0, *__: Any, **more: Any) -> int:
    return max(each for each in (width, *more.values(), 0) if isinstance(each, int))


def _spread(value: Any, *args: Any, **more: Any) -> int:
    """A size that is given as a number, with some for each."""
    return 1000 * _padded(value, *args, **more)


METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("format", "format_map"), _formatted),
    "expandtabs": _tabbed,
    "join": _joined,
    "replace": _replaced,
    "translate": lambda text, table: len(text) * weight(table),
}
FILTERS: dict[str, Callable[..., int]] = {
    "center": _padded,
    "format": _formatted,
    "indent": _indented,
    "join": lambda items, separator="", *_, **more: _joined(more.get("d", separator), items),
    "replace": _replaced,
    "wordwrap": lambda text, *args, **more: len(str(text)) * weight([*args, *more.values()]),
    **dict.fromkeys(("batch", "round", "slice", "tojson"), _spread),
}
