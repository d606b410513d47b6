"""A shape of rows: its columns, what becomes of each, and how a row of it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from assent.data.formats.fates import SHARED, Fate, is_empty
from assent.data.formats.fields import with_system
from assent.data.formats.message import template_kwargs, tools
from assent.data.formats.values import Row, optional_text
from assent.data.records import Example, Origin, RowError

Fields = dict[str, tuple[Fate, str]]


def _always(row: Row) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of rows: `build` reads the columns `fields`, of which every row has those in `required`. `matches`
    tells it from shapes with the same columns by the kind of their values, not by their correctness: a bad value is a
    problem of its row. `example` is a row that has all of `fields`. With `merges`, consecutive rows of one prompt are
    one example."""

    name: str
    description: str
    required: tuple[str, ...]
    build: Callable[[Row, Origin], Example]
    fields: Fields
    example: Row
    matches: Callable[[Row], bool] = _always
    merges: bool = False

    def fate(self, column: str) -> tuple[Fate, str]:
        """What becomes of a column, and a word about it."""
        return self.fields.get(column) or SHARED.get(column) or (Fate.META, "")

    def parse(self, row: Row, origin: Origin) -> Example:
        """The example of a row, every column of which goes where `fate` says. Raises `RowError`."""
        for name, value in row.items():
            fate, advice = self.fate(name)
            if fate is Fate.REFUSED and not is_empty(value):
                raise RowError(name, f"holds something that cannot be used; {advice}")
        example = self.build(row, origin)
        kept = {name: value for name, value in row.items() if value is not None and self.fate(name)[0] is Fate.META}
        example = replace(example, meta={**kept, **example.meta})
        if not example.prompt:
            return example
        return replace(
            example,
            prompt=with_system(example.prompt, optional_text(row, "system")),
            tools=tools(row.get("tools")),
            template_kwargs=template_kwargs(row.get("chat_template_kwargs")),
        )

    def fits(self, row: Row) -> bool:
        return all(row.get(column) is not None for column in self.required) and self.matches(row)

    def includes(self, other: Format) -> bool:
        """Whether a row of this shape has, by nature, all columns of the other: then this one says more about it."""
        own, others = set(self.required), set(other.required)
        return others <= own | set(self.fields) and not own <= others
