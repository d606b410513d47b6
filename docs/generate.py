"""Writes what can be derived from the code: docs/cli.md, and the file map of README.md.

python docs/generate.py           writes
python docs/generate.py --check   only says whether they are current (exit code 1 where not)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "assent"
sys.path.insert(0, str(SOURCE.parent))

from assent import cli, settings  # noqa: E402
from assent.config import RunConfig  # noqa: E402

BEGIN, END = "<!-- file map: made by docs/generate.py -->", "<!-- end of the file map -->"


def cli_page() -> str:
    """docs/cli.md: every command and every option, from the tables and dataclasses that define them."""
    docs = field_docs(SOURCE / "config.py")
    options = "; ".join(line.rstrip(".") for line in cli.COMMON.splitlines())
    lines = [
        "# Commands",
        "",
        "Made by `make docs` from `src/assent/cli.py` and `src/assent/config.py`.",
        "",
        f"`assent COMMAND --option value ...`. In every command {options}.",
        "",
        "The key `lr` under `optim` in a YAML file is the option `--optim.lr`. `-` and `_` are the same in names.",
        "",
        "Exit codes: 0 done; 2 a mistake in options, data, model or run folder, told in one message; 3 a loss, "
        "gradient or reward was not a finite number; 130 interrupted.",
        "",
        "| command | what it does | Python |",
        "|---|---|---|",
    ]
    for name, command in cli.COMMANDS.items():
        module, _, function = command.target.partition(":")
        lines.append(f"| [`{name}`](#{name}) | {command.help} | `{module}.{function}({command.config.__name__})` |")
    shared = settings.options(RunConfig)
    for name, command in cli.COMMANDS.items():
        argument = f" {command.positional.upper()}" if command.positional else ""
        lines += [
            "",
            f"## {name}",
            "",
            f"`assent {name}{argument} [OPTIONS]`. {one_line(command.config.__doc__ or '')}",
        ]
        rows = settings.options(command.config)
        if issubclass(command.config, RunConfig):
            lines[-1] += " It has the [options of every training command](#every-training-command)"
            names = {option.name for option in shared}
            rows = [option for option in rows if option.name not in names]
            lines[-1] += ", and:" if rows else "."
        lines += table(rows, docs, command.positional)
    lines += ["", "## Every training command", "", one_line(RunConfig.__doc__ or ""), *table(shared, docs)]
    return "\n".join(lines) + "\n"


def table(rows: list[settings.Option], docs: dict[tuple[str, str], str], positional: str | None = None) -> list[str]:
    lines = ["", "| option | default | meaning |", "|---|---|---|"] if rows else []
    for option in rows:
        last = option.name.rpartition(".")[2]
        text = next(docs[base.__name__, last] for base in option.section.__mro__ if (base.__name__, last) in docs)
        shown = option.name.upper() if option.name == positional else "--" + option.name
        lines.append(f"| `{shown}` | {default(option)} | {one_line(text)}{choices(option.kind)} |")
    return lines


def file_map() -> str:
    """One line for each source file: its path and the first sentence of its docstring."""
    paths = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" and path.name != "__main__.py")
    paths.sort(key=lambda path: (len(path.relative_to(SOURCE).parts) > 1, path.relative_to(SOURCE).as_posix()))
    rows = ["| file in `src/assent` | what it holds |", "|---|---|"]
    for path in paths:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        name, link = path.relative_to(SOURCE).as_posix(), path.relative_to(ROOT).as_posix()
        rows.append(f"| [`{name}`]({link}) | {first_sentence(text)} |")
    return "\n".join(rows)


def readme_page() -> str:
    """README.md with its file map brought up to date between the two markers."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md needs the lines '{BEGIN}' and '{END}' around its file map.")
    return f"{before}{BEGIN}\n{file_map()}\n{END}{after}"


def field_docs(path: Path) -> dict[tuple[str, str], str]:
    """(class, field) -> the string under the field."""
    found = {}
    for cls in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(cls, ast.ClassDef):
            for field, doc in zip(cls.body, cls.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                    assert isinstance(field.target, ast.Name) and isinstance(doc.value, ast.Constant)
                    found[cls.name, field.target.id] = str(doc.value.value)
    return found


def default(option: settings.Option) -> str:
    if option.default is settings.REQUIRED:
        return "required"
    if option.default in ((), {}, None):
        return "none"
    value = " ".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def choices(kind: Any) -> str:
    """The allowed words of a `Literal`, also inside a tuple."""
    words = [word for word in getattr(kind, "__args__", ()) if isinstance(word, str)]
    words = words or [word for arm in getattr(kind, "__args__", ()) for word in getattr(arm, "__args__", ())]
    words = [word for word in words if isinstance(word, str)]
    return f" One of {', '.join(f'`{word}`' for word in words)}." if words else ""


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def first_sentence(text: str) -> str:
    return one_line(text.split("\n\n")[0]).partition(". ")[0].rstrip(".:")


def main() -> int:
    pages = {ROOT / "docs" / "cli.md": cli_page(), ROOT / "README.md": readme_page()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not current. Run: make docs")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
