"""The texts of a prompt file: Jinja templates in which what is judged stands between lines that it cannot forge.

Prompts and answers are others' words, and an answer that is optimised against a judge will try anything. So each of
them must stand on lines of its own between two lines of the template, its delimiters. These may hold `{{ fence }}`, a
digest of all texts of the request: it is the same each time the same is asked, and no text can hold its own digest.
A text in which a delimiter is found all the same (where a template has fixed ones) is not judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes

from assent.data.sandbox import Bounded
from assent.errors import ConfigError
from assent.foreign import named
from assent.names import suggestion

FENCE, ROW, CRITERIA = "fence", "row", "criteria"
_MARK = "\ue000{}\ue001"
"""Stands for a text while a template is looked at."""


class Forged(Exception):
    """A text that is to be judged holds a delimiter of the template."""


class PromptTemplate:
    """A template from the prompt file `source`, where its first line is line `line`. `texts` are the names of what is
    judged, `names` those of everything that it may use.

    `used` are the names that it does use, `columns` those of the row's (as in {{ row.gold }})."""

    def __init__(self, text: str, source: str, line: int, texts: Collection[str], names: Collection[str]) -> None:
        """Raises ConfigError, with file and line, for what is no template, for an unknown name, and for a text that
        does not stand between delimiters."""
        self.source, self.line = source, line
        environment = Bounded(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        try:
            tree = environment.parse(text)
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise self._error(error.lineno, f"not a template: {error.message}") from None
        unknown = meta.find_undeclared_variables(tree) - environment.globals.keys() - {*names, ROW}
        for name in tree.find_all(nodes.Name):
            if name.name in unknown:
                raise self._error(
                    name.lineno,
                    f"unknown placeholder '{name.name}'.{suggestion(name.name, names)} Known: {', '.join(names)}, "
                    f"{ROW}.COLUMN",
                )
        self.columns = self._columns(tree)
        self.used = frozenset(meta.find_undeclared_variables(tree)) & {*names}
        self.texts = [name for name in texts if name in self.used]

    def delimiters(self, criteria: Sequence[Any]) -> tuple[str, ...]:
        """The lines around the texts, with a mark in the place of `fence`. Raises ConfigError where a text does not
        stand on a line of its own between two such lines."""
        marks = {name: _MARK.format(name) for name in self.texts}
        row = {name: _MARK.format(f"{ROW}.{name}") for name in self.columns}
        lines = self.render({**marks, FENCE: FENCE_MARK, CRITERIA: criteria}, row).splitlines()
        found = []
        for name, mark in marks.items():
            places = [number for number, line in enumerate(lines) if mark in line]
            for place in places:
                around = lines[max(place - 1, 0) : place] + lines[place + 1 : place + 2]
                alone = lines[place].strip() == mark and len(around) == 2
                if not alone or not all(
                    line.strip() and not _holds(line, [*marks.values(), *row.values()]) for line in around
                ):
                    raise self._error(
                        1,
                        f"{{{{ {name} }}}} must stand on a line of its own, between two lines that say where it begins "
                        "and ends and that it cannot write itself, such as <answer {{ fence }}>",
                    )
                found += around
            if not places:
                raise self._error(1, f"{{{{ {name} }}}} must be written as it is, without a filter or a condition")
        return tuple(dict.fromkeys(line.strip() for line in found))

    def render(self, values: Mapping[str, Any], row: Mapping[str, str]) -> str:
        """Raises ConfigError where it cannot be written."""
        try:
            return self._template.render(**values, row=SimpleNamespace(**row)).strip()
        except Exception as error:  # templates are programs of others
            raise self._error(1, f"cannot be written: {named(error)}") from None

    def _columns(self, tree: nodes.Template) -> tuple[str, ...]:
        found: list[str] = []
        whole = {id(node): node for node in tree.find_all(nodes.Name) if node.name == ROW}
        for part in tree.find_all((nodes.Getattr, nodes.Getitem)):
            name: Any = None
            if isinstance(part, nodes.Getattr):
                name = part.attr
            elif isinstance(part, nodes.Getitem) and isinstance(part.arg, nodes.Const):
                name = part.arg.value
            if isinstance(name, str) and (owner := id(getattr(part, "node", None))) in whole:
                del whole[owner]
                found.append(name)
        for node in whole.values():
            raise self._error(node.lineno, 'a column of the row is {{ row.NAME }} or {{ row["NAME"] }}')
        return tuple(dict.fromkeys(found))

    def _error(self, line: int, reason: str) -> ConfigError:
        return ConfigError(f"{self.source}:{self.line + line - 1}: {reason}.")


FENCE_MARK = _MARK.format(FENCE)


def _holds(line: str, marks: Collection[str]) -> bool:
    return any(mark in line for mark in marks)


def fence_of(texts: Sequence[str]) -> str:
    """12 hexadecimal digits that none of the texts holds: of their sha256, of that of a later try where need be."""
    number = 0
    while True:
        digest = hashlib.sha256(json.dumps([number, *texts]).encode()).hexdigest()[:12]
        if not any(digest in text for text in texts):
            return digest
        number += 1


def check_texts(texts: Sequence[str], delimiters: Sequence[str], fence: str) -> None:
    """Raises Forged where a text holds a delimiter, however it is spaced and capitalised."""
    lines = [_plain(line.replace(FENCE_MARK, fence)) for line in delimiters]
    for text in map(_plain, texts):
        if any(line in text for line in lines):
            raise Forged


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
