"""Writes what can be derived: docs/cli.md, docs/formats.md and tables of docs/evaluation.md, docs/objectives.md,
docs/online.md, docs/own.md, docs/merging.md and docs/reward-models.md from the code, that of docs/models.md from what
was measured (docs/models.json), and docs/map.md from the docstrings of modules.

python docs/generate.py           writes
python docs/generate.py --check   only says whether they are current (exit code 1 where not)
"""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "assent"
sys.path.insert(0, str(SOURCE.parent))

from assent import PUBLIC, cli, config, shorthelp  # noqa: E402
from assent.config import MERGES, METHODS, OBJECTIVES, REWARD_MODELS, Method, Objective, settings  # noqa: E402
from assent.config.estimators import ESTIMATORS  # noqa: E402
from assent.config.relations import WORDS  # noqa: E402
from assent.config.sections import default_of  # noqa: E402
from assent.data import conversions  # noqa: E402
from assent.data.formats import FORMATS, Format, fates  # noqa: E402
from assent.measures import shapes  # noqa: E402
from assent.measures.table import MODULES  # noqa: E402

MODELS = ROOT / "docs" / "models.md"
PAGE, ONLINE, MAP = ROOT / "docs" / "objectives.md", ROOT / "docs" / "online.md", ROOT / "docs" / "map.md"
OWN = ROOT / "docs" / "own.md"
MERGING = ROOT / "docs" / "merging.md"
REWARD = ROOT / "docs" / "reward-models.md"
EVALUATION = ROOT / "docs" / "evaluation.md"


# ---- docs/cli.md


def public(target: str) -> str:
    """How Python calls what a command calls: from `assent` itself, where it is there."""
    module, _, function = target.partition(":")
    return f"assent.{function}" if function in PUBLIC.get(module, ()) else f"{module}.{function}"


def cli_page() -> str:
    """docs/cli.md: every command and every option, from the tables and dataclasses that define them."""
    options = "; ".join(line.rstrip(".") for line in cli.COMMON.splitlines())
    lines = [
        "# Commands",
        "",
        "Made by `make docs` from `cli.py` and `config/` in `src/assent`.",
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
    names = [name for group in cli.GROUPS.values() for name in group if name not in {**OBJECTIVES, **METHODS}]
    for name in names:
        command = cli.COMMANDS[name]
        lines.append(
            f"| [`{name}`](#{name}) | {command.help} | `{public(command.target)}({command.config.__name__})` |"
        )
    for heading, group in cli.GROUPS.items():
        if group[0] in OBJECTIVES or group[0] in METHODS:
            links = ", ".join(f"[`{name}`](#{anchor(name)})" for name in group)
            target = public(cli.COMMANDS[group[0]].target)
            make = "preference_config" if group[0] in OBJECTIVES else "online_config"
            lines.append(f"| {links} | {heading}. | `{target}({make}(NAME, ...))` |")
    shared = settings.options(config.RunConfig)
    for name in names:
        command = cli.COMMANDS[name]
        argument = "".join(f" {word.upper()}" for word in command.positional)
        lines += [
            "",
            f"## {name}",
            "",
            f"`assent {name}{argument} [OPTIONS]`. {one_line(command.config.__doc__ or '')}",
        ]
        rows = settings.options(command.config)
        if issubclass(command.config, config.RunConfig):
            lines[-1] += " It has the [options of every training command](#every-training-command)"
            rows = without(rows, shared)
            lines[-1] += ", and:" if rows else "."
        lines += table(rows, command.positional)
    lines += every_objective() + every_method()
    lines += ["", "## Every training command", "", one_line(config.RunConfig.__doc__ or ""), *table(shared)]
    return "\n".join(lines) + "\n"


def every_objective() -> list[str]:
    """The commands that learn directly from feedback: what they share, then what is each one's own."""
    shared, common = settings.options(config.RunConfig), settings.options(config.PreferenceConfig)
    anchored = [option for option in settings.options(cli.COMMANDS["dpo"].config) if "reference." in option.name]
    lines = [
        "",
        "## Every objective",
        "",
        "`assent OBJECTIVE [OPTIONS]` learns directly from feedback; [objectives.md](objectives.md) says which one to "
        "choose. Each has the [options of every training command](#every-training-command), and:",
        *table(without(common, shared)),
        "",
        "Objectives on pairs:",
        *table(without(settings.options(config.PairConfig), common)),
        "",
        "Objectives on yes/no labels:",
        *table(without(settings.options(config.BinaryConfig), settings.options(config.ListConfig))),
        "",
        "Objectives with a reference:",
        *table(anchored),
    ]
    for name, row in OBJECTIVES.items():
        text = f"[{row.name}](objectives.md#{name}). {one_line(row.summary)}"
        lines += ["", f"### {name}", "", f"`assent {name} [OPTIONS]`. {text}", *table(own_options(name))]
    return lines


def every_method() -> list[str]:
    """The commands that learn from rewards of sampled answers: what they share, then what is each one's own."""
    shared, common = settings.options(config.RunConfig), settings.options(config.OnlineConfig)
    lines = [
        "",
        "## Every online method",
        "",
        "`assent METHOD [OPTIONS]` learns from rewards of its own answers; [online.md](online.md) says which one to "
        "choose, and what the sections of options are for. Each has the [options of every training "
        "command](#every-training-command), and:",
        *table(without(common, shared)),
    ]
    for name, row in METHODS.items():
        text = f"[{row.name}](online.md). {one_line(row.summary)}"
        lines += ["", f"### {name}", "", f"`assent {name} [OPTIONS]`. {text}", *table(method_options(name))]
    return lines


def method_options(name: str) -> list[settings.Option]:
    """The options of an online method that others have not, or with another default."""
    usual = {option.name: option.default for option in settings.options(config.OnlineConfig)}
    rows = settings.options(cli.COMMANDS[name].config)
    return [option for option in rows if option.name not in usual or option.default != usual[option.name]]


def anchor(name: str) -> str:
    """What Markdown viewers make of a method's or objective's heading; of like ones, the later get a number."""
    plain = {each: re.sub(r"[^\w-]", "", each) for each in (*OBJECTIVES, *METHODS)}
    before = [each for each in plain if plain[each] == plain[name]].index(name)
    return f"{plain[name]}-{before}" if before else plain[name]


def without(rows: list[settings.Option], others: list[settings.Option]) -> list[settings.Option]:
    names = {option.name for option in others}
    return [option for option in rows if option.name not in names]


def table(rows: list[settings.Option], positional: tuple[str, ...] = ()) -> list[str]:
    lines = ["", "| option | default | meaning |", "|---|---|---|"] if rows else []
    for option in rows:
        shown = option.name.upper() if option.name in positional else "--" + option.name
        lines.append(f"| `{shown}` | {default(option)} | {meaning(option)} |")
    return lines


def meaning(option: settings.Option) -> str:
    """The option's help: the string under its field; for an option from a table, its help there."""
    return f"{one_line(shorthelp.doc(option))}{choices(option.kind)}"


# ---- docs/objectives.md


def objectives_page() -> str:
    """docs/objectives.md: its own text, and three parts made from `OBJECTIVES` and the functions of `assent.losses`."""
    sections = "\n".join(line for name in OBJECTIVES for line in objective(name))
    return filled(PAGE, {"table of objectives": chooser(), "conversions": conversion_table(), "objectives": sections})


def chooser() -> str:
    """One line for each objective."""
    lines = [
        "| command | what it does | learns from | reference | needs besides | when to use it |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in OBJECTIVES.items():
        needed = ", ".join(needs(row)) or "–"
        cells = f"[`{name}`](#{name})", row.summary, LEARNS[row.feedback], reference(row), needed, row.use
        lines.append("| " + " | ".join(map(one_line, cells)) + " |")
    return "\n".join(lines)


LEARNS = {"pairs": "pairs", **WORDS}
NEEDS = {
    r"length_\w+": "answer lengths",
    r"margin": "strengths of the pairs",
    r"\w+_shared": "log-probs of the first tokens",
    r"kl_\w+": "KL over the whole vocabulary",
    r"weight_\w+": "the policy's whole distribution",
    r"kl": "answers to other prompts",
    r"shift": "a moving mean of the rewards",
}
"""What a parameter of a loss stands for, beside log-probs and the feedback itself."""


def needs(row: Objective) -> list[str]:
    """What an objective needs besides, from the positional parameters of its loss."""
    names = [argument.arg for argument in LOSSES[row.loss].args.args]
    found = [words for pattern, words in NEEDS.items() if any(re.fullmatch(pattern, name) for name in names)]
    return found + ["all pairs of a step at once"] * row.whole_step


def reference(row: Objective) -> str:
    """Whether an objective has a reference, and of which kind."""
    return {None: "–", "frozen": "yes"}.get(row.reference_mode, row.reference_mode)


def conversion_table() -> str:
    """How feedback of another kind is read."""
    tasks = {
        "`sft`": conversions.AS_ANSWERS,
        "`reward`, `reward-odin`, objectives on pairs": conversions.AS_PAIRS,
        "objectives on yes/no labels": conversions.AS_LABELS,
        "`reward-ranking`, objectives on rankings": conversions.AS_RANKINGS,
        "objectives on ratings": conversions.AS_RATINGS,
    }
    found = [(task, text) for task, groups in tasks.items() for kinds in groups for text in kinds.values() if text]
    rows = [f"| {task} | {one_line(text)} |" for task, text in found]
    return "\n".join(["| for | what happens |", "|---|---|", *rows])


def objective(name: str) -> list[str]:
    """The section of one objective."""
    row = OBJECTIVES[name]
    formula, remarks = docstring_parts(LOSSES[row.loss])
    compared = {"yes": "a reference", "–": "no reference"}.get(reference(row), f"a {reference(row)} reference")
    lines = [
        "",
        f"## {name}",
        "",
        f"**{row.name}** ([arXiv {row.paper}](https://arxiv.org/abs/{row.paper})). {one_line(row.summary)}",
        "",
        f"When to use it: {row.use}",
        "",
        " · ".join([f"`assent {name}`", f"learns from {LEARNS[row.feedback]}", compared, *needs(row)]),
        "",
        f"```\n{formula}\n```",
    ]
    lines += [line for remark in remarks for line in ("", one_line(remark))]
    own = own_options(name)
    lines += ["", "| option | default | must be | meaning |", "|---|---|---|---|"] if own else []
    for option in own:
        words = option.range.words if option.range else "–"
        lines.append(f"| `--{option.name}` | {default(option)} | {words} | {meaning(option)} |")
    return lines


def own_options(name: str) -> list[settings.Option]:
    """The options of an objective that others have not, or with another default."""
    rows = settings.options(cli.COMMANDS[name].config)
    usual = {option.name: option.default for option in settings.options(cli.COMMANDS["dpo"].config)}
    return [
        option
        for option in rows
        if option.name.startswith("loss.")
        or (option.name.startswith("reference.") and option.default != usual[option.name])
    ]


def docstring_parts(function: ast.FunctionDef) -> tuple[str, list[str]]:
    """Of a loss's docstring: the formula, which is indented, and the paragraphs between it and the parameters."""
    paragraphs = (ast.get_docstring(function) or "").split("\n\n")[1:]
    formula = [part for part in paragraphs if all(line.startswith("    ") for line in part.splitlines())]
    rest = [part for part in paragraphs if part not in formula]
    start = (index for index, part in enumerate(rest) if re.match(r"[\w*, ]+  +\[[A-Z]\]", part))
    parameters = next(start, len(rest))
    return textwrap.dedent("\n\n".join(formula)), rest[:parameters]


def loss_functions() -> dict[str, ast.FunctionDef]:
    """The functions of `assent.losses` by name, without importing them (and torch)."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((SOURCE / "losses").glob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


LOSSES = loss_functions()


# ---- docs/merging.md


def merging_page() -> str:
    """docs/merging.md: its own text, and the table of methods."""
    lines = ["| method | what it is | formula | paper | options | when to take it |", "|---|---|---|---|---|---|"]
    for name, row in MERGES.items():
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})"
        options = " ".join(f"`--{option}`" for option in (*(["base"] if row.base else []), *row.options))
        cells = f"`{name}`", row.name, row.formula, paper, options, row.use
        lines.append("| " + " | ".join(map(one_line, cells)) + " |")
    return filled(MERGING, {"table of methods": "\n".join(lines)})


# ---- docs/reward-models.md


REWARD_LOSSES = {
    "Pairs": (
        "bradley_terry",
        "bradley_terry_tokens",
        "rao_kupper",
        "davidson",
        "centring",
        "choice_kl",
        "likelihood_regulariser",
    ),
    "Rankings": ("k_wise", "plackett_luce_scores", "best_of_k"),
    "ODIN": ("odin_length", "orthogonality"),
}
"""The losses of reward models under their headings."""


def reward_page() -> str:
    """docs/reward-models.md: its own text, the table of kinds, and the formulas of their losses."""
    return filled(REWARD, {"table of kinds": reward_table(), "formulas": "\n".join(reward_formulas())})


def reward_table() -> str:
    lines = ["| command | what it trains | learns from | paper | when to take it |", "|---|---|---|---|---|"]
    for name, row in REWARD_MODELS.items():
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})"
        cells = f"[`{name}`](cli.md#{name})", f"{row.name}. {row.summary}", row.data, paper, row.use
        lines.append("| " + " | ".join(map(one_line, cells)) + " |")
    return "\n".join(lines)


def reward_formulas() -> list[str]:
    """Each loss: what it is, its formula, and remarks; as its docstring says."""
    lines = []
    for heading, names in REWARD_LOSSES.items():
        lines += ["", f"### {heading}"]
        for name in names:
            first = (ast.get_docstring(LOSSES[name]) or "").split("\n\n")[0]
            lines += ["", f"**`{name}`** {one_line(first)}"]
            formula, remarks = docstring_parts(LOSSES[name])
            lines += ["", f"```\n{formula}\n```"] if formula else []
            lines += [line for remark in remarks for line in ("", one_line(remark))]
    return lines


# ---- docs/formats.md

FORMATS_TEXT = """# Shapes of rows

Made by `make docs` from the tables that the readers follow (`src/assent/data/formats/table.py`, `fates.py`).

A file (jsonl, json, parquet, csv, tsv; also .gz), a folder of them or a hub id holds rows of one of these shapes. The
shape is detected; `assent data FILE` says which one it is, what becomes of the rows and what each command can do with
them. `--data.format NAME` chooses a shape, `--data.columns EXPECTED:FOUND ...` names columns that are called otherwise;
dots lead into objects (`--data.columns answer:reward_model.ground_truth`), here and wherever else a column is named.

Every column is used, kept or refused, never dropped in silence:

- What the tables below name is used as they say. None and empty values are "absent".
- Any other column is kept: functions, rules (`--rewards.rules numeric=COLUMN`), servers and the curriculum can ask for
  it.
- A row that cannot be used is a problem row: it is named with its column and the reason, and left out as long as there
  are not more than `--data.max_bad` of them.

In a csv or tsv file every cell is text, but for `{csv}`; lists of messages are their JSON.
A score beyond {largest:g}, a key that stands twice in one object, half of a surrogate pair or a quote that is never
closed is a problem, not a guess.

## Long rows

`--data.max_length` is the limit on prompt and answer together. A longer answer is cut at the end, then without its EOS.
`--data.long` says what happens where the prompt leaves no room for an answer: `drop` (usual) leaves the row out and
counts it, `refuse` makes it a problem row, and `truncate_prompt_left` takes whole turns off the beginning of the
conversation of every row that is longer than the limit, until it fits; a system message and the last question stay.
Turns are taken off rather than tokens, so that what remains is a conversation that the chat template has written whole.
Methods that sample answers keep `--sampling.max_new_tokens` of the limit for them. How many rows are used, skipped,
shortened and cut stands at the start of every run, and in `assent data FILE --model FOLDER` before.
"""


def formats_page() -> str:
    """docs/formats.md: every shape, its columns, what becomes of each, and an example row."""
    from assent.data.formats.load import CSV_VALUES
    from assent.data.formats.message import ROLES
    from assent.data.formats.values import LARGEST

    text = FORMATS_TEXT.format(csv="`, `".join(sorted(CSV_VALUES)), largest=LARGEST)
    lines = [*text.splitlines(), "", "## What a message may hold", ""]
    roles: dict[str, list[str]] = {}
    for written, role in ROLES.items():
        roles.setdefault(role, []).append(f"`{written}`")
    spoken = [f"{role} ({', '.join(names)})" for role, names in roles.items()]
    lines += [f"Roles: {'; '.join(spoken)}.", ""]
    lines += fate_table("key of a message", grouped(fates.MESSAGE))
    lines += ["| any other | refused | unless it is empty |", "", "## Columns of every shape", ""]
    lines += fate_table("column", grouped(fates.SHARED))
    lines += [f"| any other | {fates.Fate.META} | |", "", "## All shapes", "", "| shape | rows |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {one_line(fmt.description)} |" for name, fmt in FORMATS.items()]
    for fmt in FORMATS.values():
        lines += format_section(fmt)
    return "\n".join(lines) + "\n"


def format_section(fmt: Format) -> list[str]:
    description = fmt.description[0].upper() + fmt.description[1:]
    row = json.dumps(fmt.example, ensure_ascii=False)
    needed = ", ".join(f"`{name}`" for name in fmt.required)
    lines = ["", f"## {fmt.name}", "", f"{description}. Needed: {needed}.", "", f"```json\n{row}\n```", ""]
    return lines + fate_table("column", grouped(fmt.fields))


def grouped(fields: Any) -> list[tuple[list[str], str, str]]:
    """Neighbours of one fate and meaning in one line."""
    rows: list[tuple[list[str], str, str]] = []
    for name, (fate, about) in fields.items():
        if rows and rows[-1][1:] == (str(fate), about):
            rows[-1][0].append(name)
        else:
            rows.append(([name], str(fate), about))
    return rows


def fate_table(heading: str, rows: list[tuple[list[str], str, str]]) -> list[str]:
    lines = [f"| {heading} | becomes | about it |", "|---|---|---|"]
    for names, fate, about in rows:
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {fate} | {one_line(about)} |")
    return lines


# ---- docs/online.md


def evaluation_page() -> str:
    """docs/evaluation.md: its own text, and the table of measures."""
    return filled(EVALUATION, {"table of measures": measures_table()})


def measures_table() -> str:
    """Every measure under its heading."""
    lines = []
    for heading, rows in MODULES.items():
        lines += [f"### {heading}", "", "| measure | what it is | unit | better | needs |", "|---|---|---|---|---|"]
        for row in rows:
            asked = "; only where `--measures` names it" if row.on_request else ""
            package = (f"`{row.package}` of the extra `eval`",) if row.package else ()
            needs = "; ".join([*(shapes.NEEDS[need] for need in row.needs), *package])
            about = row.about[0].upper() + row.about[1:].rstrip(".")
            cells = f"`{row.name}`", about + asked, row.unit, row.better or "", needs
            lines.append("| " + " | ".join(map(one_line, cells)) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def online_page() -> str:
    """docs/online.md: its own text, and the table of methods."""
    return filled(ONLINE, {"table of methods": methods_table()})


POLICY_LOSSES = {
    "ppo_clip": "clipped ratio",
    "reinforce": "log-prob",
    "gspo": "clipped ratio of whole answers",
    "cispo": "log-prob, bounded weight",
}
"""And of methods that compare answers the objective's own name."""
REDUCED = {"token": "every token", "response": "every answer", "fixed": "every token, by the longest length"}
COUNTED = {"pairs": "every pair", "binary": "every answer"}


def methods_table() -> str:
    """One line for each online method: what it combines."""
    lines = [
        "| command | what it does | advantage | loss | counts the same | KL | answers | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in METHODS.items():
        options = {**row.options}
        scale = {"group": ", over its standard deviation", "batch": ", over the step's"}.get(options.get("scale"), "")
        advantage = ESTIMATORS[row.estimator].words + scale + (", whitened" if options.get("whiten") else "")
        cells = [
            f"[`{name}`](cli.md#{anchor(name)})",
            row.summary,
            advantage,
            loss_of(row),
            REDUCED[options["reduction"]] if row.objective is None else COUNTED[OBJECTIVES[row.objective].feedback],
            kl_of(row),
            str(default_of(row.config, "rollout").responses),
            f"[{row.paper}](https://arxiv.org/abs/{row.paper})",
        ]
        lines.append("| " + " | ".join(map(one_line, cells)) + " |")
    return "\n".join(lines)


def loss_of(row: Method) -> str:
    if row.objective is not None:
        return OBJECTIVES[row.objective].name
    return "divergence from a teacher, and log-prob" if row.needs_teacher else POLICY_LOSSES[row.loss]


def kl_of(row: Method) -> str:
    kl = default_of(row.config, "kl")
    if row.objective is not None:
        objective = OBJECTIVES[row.objective]
        return f"beta {objective.options['beta']:g}, in the loss" if objective.needs_reference else "none"
    return f"{kl.coef:g}, {kl.estimator}, in the {kl.place}" if kl.coef else "none"


# ---- docs/own.md


def own_page() -> str:
    """docs/own.md: its own text, and what each kind of function may ask for."""
    from assent.algorithms.online.method import REWARDS, TOKENS
    from assent.algorithms.preference.step_loss import LOSS_INPUTS, WITH_REFERENCE

    rows = [
        (
            name,
            each.size,
            LEARNS.get(each.feedback or "", "all but pairs"),
            "yes" if each.need in WITH_REFERENCE else "–",
            each.words,
        )
        for name, each in LOSS_INPUTS.items()
    ]
    parts = {"tensors of an objective": tensor_table(("feedback", "reference"), rows)}
    for kind, tensors in {"a policy loss": TOKENS, "an estimator": REWARDS}.items():
        parts[f"tensors of {kind}"] = tensor_table((), [(name, *each) for name, each in tensors.items()])
    return filled(OWN, parts)


def tensor_table(more: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """One line for each tensor: its name, size, further cells and words."""
    heads = ["parameter", "size", *more, "what it is"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| `{name}` | [{size}] | {' | '.join(map(one_line, rest))} |" for name, size, *rest in rows]
    return "\n".join(lines)


# ---- docs/models.md


def models_page() -> str:
    """docs/models.md: its own text, and what was measured of every type."""
    return filled(MODELS, {"table of models": models_table()})


def models_table() -> str:
    found = json.loads((ROOT / "docs" / "models.json").read_text(encoding="utf-8"))
    rows = found["types"]
    tried = {kind: row for kind, row in rows.items() if "untried" not in row}
    counts = {name: sum(row[name] == "yes" for row in tried.values()) for name in ("trained", "shared", "sampled")}
    lines = [
        f"transformers {found['transformers']} has {len(rows)} types. Of the {len(tried)} that were tried, "
        f"{counts['trained']} are trained, {counts['shared']} with shared prompts, and {counts['sampled']} sampled by "
        "the torch engine.",
        "",
        "| type | trained | prompts shared | sampled by the torch engine | own class |",
        "|---|---|---|---|---|",
    ]
    for kind, row in tried.items():
        cells = [verdict(row[name]) for name in ("trained", "shared", "sampled")]
        lines.append(f"| `{kind}` | {' | '.join(cells)} | {'yes' if row['reward'] else 'no'} |")
    lines += ["", "Not tried: " + "; ".join(f"`{k}` ({r['untried']})" for k, r in rows.items() if k not in tried) + "."]
    return "\n".join(lines)


def verdict(text: str) -> str:
    """A cell: "yes", or "no" and why, without the name of the class."""
    if text in ("yes", ""):
        return text or "no"
    why = re.sub(r"^(the folder )?\(?\w*\)? ?(cannot be (sampled by the torch engine|trained exactly): )", "", text)
    return "no: " + one_line(re.sub(r"^\w+(Model|Head|LM|Decoder)\w* ", "", why).removesuffix("."))


# ---- docs/map.md


def map_page() -> str:
    """docs/map.md: one line for each source file, with the first sentence of its docstring."""
    paths = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if not path.stem.startswith("__")]
    folders = sorted({path.parent.as_posix() for path in paths})
    lines = [
        "# File map",
        "",
        "Made by `make docs` from the docstrings in `src/assent`. The [README](../README.md#how-it-works) has the "
        "folders in reading order.",
    ]
    for folder in folders:
        lines += ["", f"## {'assent' if folder == '.' else folder}", "", "| file | what it holds |", "|---|---|"]
        for path in sorted(path for path in paths if path.parent.as_posix() == folder):
            text = ast.get_docstring(ast.parse((SOURCE / path).read_text(encoding="utf-8"))) or ""
            lines.append(f"| [`{path.name}`](../src/assent/{path.as_posix()}) | {first_sentence(text)} |")
    return "\n".join(lines) + "\n"


# ---- what all pages use


def filled(page: Path, parts: dict[str, str]) -> str:
    """The page with each part between the two markers that name it."""
    text = page.read_text(encoding="utf-8")
    for name, made in parts.items():
        begin, end = f"<!-- {name}: made by docs/generate.py -->", f"<!-- end of the {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{page.relative_to(ROOT)} needs the lines '{begin}' and '{end}' around its {name}.")
        text = f"{before}{begin}\n{made}\n{end}{after}"
    return text


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
    pages = {
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "docs" / "formats.md": formats_page(),
        PAGE: objectives_page(),
        ONLINE: online_page(),
        OWN: own_page(),
        MERGING: merging_page(),
        REWARD: reward_page(),
        EVALUATION: evaluation_page(),
        MODELS: models_page(),
        MAP: map_page(),
    }
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
