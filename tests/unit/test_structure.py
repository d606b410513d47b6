"""House rules, held by the code itself: imports point one way, files and functions stay short, packages are declared,
and what is derived from the code is current."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import assent
from assent.errors import AssentError

SOURCE = Path(assent.__file__).parent
ROOT = SOURCE.parents[1]
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [path.relative_to(SOURCE).as_posix() for path in FILES]

RANKS = (
    ("errors", "foreign", "counterparts"),
    ("cpus", "files", "names", "outputs", "streams", "http", "process"),
    ("guest", "messages"),
    ("lock",),
    ("config",),
    ("arguments", "shorthelp"),
    ("statistics", "functions", "code", "deferred"),
    ("measures",),
    ("interrupt", "launch"),
    ("carried",),
    ("distributed",),
    ("data",),
    ("models",),
    ("losses",),
    ("environment",),
    ("rollout",),
    ("rewards",),
    ("train",),
    ("algorithms",),
    ("evaluate",),
    ("serve",),
    ("people",),
    ("loops",),
    ("lab",),
    ("cli",),
    ("__main__",),
)
"""A part may import from earlier ranks and from itself. `assent` itself (the version) is open to all."""

RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
PACKAGES = {
    "argon2": "argon2-cffi",
    "markdown_it": "markdown-it-py",
    "re2": "google-re2",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Modules that are named otherwise than the package that brings them."""
LIGHT = (
    "__init__.py",
    "__main__.py",
    "arguments.py",
    "cli.py",
    *(name for name in NAMES if name.startswith("config/")),
    "counterparts.py",
    "cpus.py",
    "errors.py",
    "messages.py",
    "names.py",
    "process.py",
    "shorthelp.py",
    "streams.py",
)
"""What is imported before the options of a command are known to be right."""


def part_of(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((SOURCE / name).read_text(encoding="utf-8"))


def imports(name: str, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of every import; a lazily imported module counts as well."""
    nodes = tree_of(name).body if top_level_only else ast.walk(tree_of(name))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["assent", *name.split("/")[: -node.level]] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"assent.{alias.name}" for alias in node.names] if module == "assent" else [module]
            yield from ((name, node.lineno) for name in names)


def above(name: str) -> Iterator[str]:
    """The imports of a file that no file of its part may make."""
    part = part_of(name)
    for module, line in imports(name):
        if not module.startswith("assent.") or module == "assent.__version__":
            continue
        other = module.split(".")[1]
        if part == "losses" != other:
            yield f"{name}:{line}: losses are pure, they import nothing of ours"
        if other != part and RANK[other] >= RANK[part]:
            yield f"{name}:{line} imports {module}, which stands above {part}"


def test_imports_point_one_way():
    assert [fault for name in NAMES if name != "__init__.py" for fault in above(name)] == []
    assert RANK["errors"] < RANK["losses"] < RANK["people"] < RANK["cli"]


def test_files_can_be_read_in_one_sitting():
    lines = {name: len((SOURCE / name).read_text(encoding="utf-8").splitlines()) for name in NAMES}
    assert {name: number for name, number in lines.items() if number > 400} == {}
    assert max(lines.values()) > 300


def test_files_say_what_they_are():
    assert [name for name in NAMES if tree_of(name).body and not ast.get_docstring(tree_of(name))] == []


def test_functions_fit_on_a_screen():
    lengths = {
        f"{name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for name in NAMES
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {place: length for place, length in lengths.items() if length > 60} == {}
    assert max(lengths.values()) > 40


def test_the_first_imports_are_light():
    light = {"__future__", "annotated_types", "yaml", "typing_extensions", "assent", *sys.stdlib_module_names}
    made = {f"{name}:{line}": module for name in LIGHT for module, line in imports(name, top_level_only=True)}
    assert {place: module for place, module in made.items() if module.partition(".")[0] not in light} == {}
    assert len(made) > len(LIGHT)


def test_every_third_party_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {requirement_name(line) for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    known = ("track", "vllm", "math", "re2", "serve", "eval", "people")
    optional = {requirement_name(line) for extra in known for line in extras[extra]}
    used = {}
    for name in NAMES:
        for module, line in imports(name):
            top = module.partition(".")[0]
            if top not in {"assent", "__future__"} | sys.stdlib_module_names:
                used[PACKAGES.get(top, top).replace("_", "-")] = f"{name}:{line}"
    undeclared = {package: where for package, where in used.items() if package not in core | optional}
    assert not undeclared
    core -= {"anyio"}  # what httpx2 runs on; older ones leave connections open
    assert core <= set(used), f"declared but never imported: {core - set(used)}"
    for name in NAMES:
        if name.startswith(("people/store/", "people/web/")) or (name.startswith("serve/") and name != "serve/run.py"):
            continue  # packages of such: people/label.py and serve/run.py are the ways in
        for module, line in imports(name, top_level_only=True):
            assert module.partition(".")[0].replace("_", "-") not in optional, (
                f"{name}:{line}: an extra is imported only where it is used"
            )


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    del extras["vllm"]  # it pins others itself, so it is tested in an environment of its own (tests/vllm)
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    lines = [line for line in lines if not line.startswith("assent[")]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {requirement_name(line) for line in lines} <= pinned


def requirement_name(line: str) -> str:
    return re.match(r"[A-Za-z0-9-]+", line).group().lower()


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_page_is_current(generator):
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == generator.cli_page(), "run: make docs"


def test_the_page_of_shapes_is_current(generator):
    page = generator.formats_page()
    assert (ROOT / "docs" / "formats.md").read_text(encoding="utf-8") == page, "run: make docs"
    for fmt in generator.FORMATS.values():
        section = page.split(f"\n## {fmt.name}\n")[1].split("\n## ")[0]
        assert json.loads(section.split("```json\n")[1].split("\n```")[0]) == fmt.example
        assert all(f"`{name}`" in section for name in (*fmt.required, *fmt.fields))


def test_the_page_of_objectives_is_current(generator):
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert page == generator.objectives_page(), "run: make docs"


def test_the_page_of_own_functions_is_current(generator):
    page = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    assert page == generator.own_page(), "run: make docs"
    for part in (
        "| `policy_chosen` | [M] | pairs | – |",
        "| `desirable` | [S] | yes/no labels | – |",
        "| `values` | [N] |",
    ):
        assert part in page
    assert "| `kl` | [S] | yes/no labels | yes |" in page and "| `policy` | [S] | all but pairs | – |" in page


def test_the_page_of_models_is_current(generator):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == generator.models_page(), "run: make docs"


def test_every_objective_has_its_section(generator):
    sections = dict(section.split("\n", 1) for section in generator.objectives_page().split("\n## "))
    table = [line for line in generator.chooser().splitlines() if line.startswith("| [`")]
    assert len(table) == len(generator.OBJECTIVES)
    for name, row in generator.OBJECTIVES.items():
        text = sections[name]
        assert f"https://arxiv.org/abs/{row.paper}" in text and row.use in text and f"`assent {name}`" in text
        formula = text.split("```")[1]
        assert "loss" in formula and "policy" in formula.replace("ratio", "policy") and "[M]" not in formula
        for option, value in row.options.items():
            shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else value
            assert re.search(rf"`--loss\.{option}` \| `?{re.escape(str(shown))}`? \|", text), f"{name} {option}"


def test_what_objectives_need_comes_from_their_losses(generator):
    found = {name: generator.needs(row) for name, row in generator.OBJECTIVES.items()}
    assert found["dpo"] == [] and found["simpo"] == ["answer lengths"] and found["odpo"] == ["strengths of the pairs"]
    assert found["tdpo"] == ["KL over the whole vocabulary"] and found["kto"] == ["answers to other prompts"]
    assert found["ld-dpo"] == ["log-probs of the first tokens"] and found["aot"] == ["all pairs of a step at once"]
    feedback = r"(policy|reference)(_chosen|_rejected)?|desirable|level|rating|prompt"
    for row in generator.OBJECTIVES.values():
        for argument in generator.LOSSES[row.loss].args.args:
            patterns = (feedback, *generator.NEEDS)
            assert any(re.fullmatch(pattern, argument.arg) for pattern in patterns), f"{row.loss}: {argument.arg}"


def test_the_page_knows_the_alarm_and_every_conversion(generator):
    from assent.algorithms.preference.diagnostics import FALL

    page = generator.objectives_page()
    assert f"more than {FALL:g} nats per token" in page
    assert page.count("are read as") == generator.conversion_table().count("\n") - 1 > 10


def test_a_page_without_its_markers_is_named(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("no markers")
    with pytest.raises(SystemExit, match=r"page\.md needs the lines '<!-- file map: .*' and '<!-- end of the file map"):
        generator.filled(tmp_path / "page.md", {"file map": "x"})


def test_the_file_map_is_true(generator):
    assert (ROOT / "docs" / "map.md").read_text(encoding="utf-8") == generator.map_page(), "run: make docs"


def test_the_readme_is_short_and_its_links_lead_somewhere():
    """Also the links between the pages of docs/, with their headings."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in link:
                path, _, heading = link.partition("#")
                target = page.parent / path if path else page
                assert target.exists(), f"{page.name}: {link}"
                assert not heading or heading in anchors(target), f"{page.name}: {link}"


def test_the_commands_that_pages_print_are_read_as_printed(generator):
    """By the shell too: comments behind them, quotes, continued lines. `...` stands for options that are left out."""
    printed = 0
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in re.findall(r"^ *assent (?!COMMAND).*$", block.replace("\\\n", " "), re.M):
                name, *words = shlex.split(line, comments=True)[1:]
                try:
                    generator.cli.parse(name, [word for word in words if word != "..."])
                except AssentError as error:
                    assert "..." in words and "must be given" in str(error), f"{page.name}: {line}"
                printed += 1
    assert printed > 50


def anchors(page: Path) -> set[str]:
    """The headings of a page as Markdown viewers link to them; of like ones, the later get a number."""
    found: Counter[str] = Counter()
    links = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        links.add(f"{plain}-{found[plain]}" if found[plain] else plain)
        found[plain] += 1
    return links


def test_every_option_is_documented(generator):
    page = generator.cli_page()
    for name, command in generator.cli.COMMANDS.items():
        for option in generator.settings.options(command.config):
            shown = option.name.upper() if option.name in command.positional else f"--{option.name}"
            assert f"| `{shown}` |" in page, f"{name} {shown}"


def test_the_lowest_versions_are_declared():
    """`make test-lowest` pins them; without a bound anything would be allowed, and nothing of it tested."""
    spec = importlib.util.spec_from_file_location("lowest", ROOT / "tests" / "lowest.py")
    lowest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lowest)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = lowest.pins(project)
    bounded = [line for line in project["optional-dependencies"]["dev"] if ">=" in line]
    wanted = {requirement_name(line) for line in [*project["dependencies"], *bounded]}
    assert {pin.partition("==")[0] for pin in pins} >= wanted
    assert "torch==2.11" in pins and any(pin.startswith("bitsandbytes==") for pin in pins)
    with pytest.raises(ValueError, match="'rich' has no lower bound"):
        lowest.pins({"dependencies": ["rich"], "optional-dependencies": dict.fromkeys(lowest.EXTRAS, [])})


def test_the_tests_that_a_promise_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")))
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 20 and named <= there
