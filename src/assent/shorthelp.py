"""`assent COMMAND --help`: the options that people set, from one table; `--help-all` has every option."""

from __future__ import annotations

import ast
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from assent.config.settings import REQUIRED, Option

TRAINED = (
    "model.path model.lora.rank data.train data.eval_fraction optim.lr train.batch_size train.epochs train.eval_every "
    "out resume"
)
LOOP = "model.path data.train optim.lr train.batch_size train.max_steps out resume rounds "
COMPARED = f"{TRAINED} rewards.model rewards.functions rewards.judges rollout.responses sampling.max_new_tokens"
BASIC: dict[str, str] = {
    "multi_turn": "prompts out take multi_turn against filter.near filter.languages filter.code topics.number "
    "topics.model complexity.source choose.pairs choose.budget choose.source resume summary dropped",
    "distill.beta": f"{TRAINED} rewards.model distill.teacher distill.beta distill.on_policy rollout.responses "
    "sampling.max_new_tokens",
    "loss.ties": f"{COMPARED} loss.beta",
    "loss.threshold": f"{COMPARED} loss.beta",
    "topic": "files labels annotator item topic scale format columns split limit seed summary",
    "choices": f"{LOOP} source principles choices revisions demonstrations comparisons answers method options",
    "contrasted": f"{LOOP} sampling.max_new_tokens templates contrasted comparisons method options judge.model",
    "steering.ratings": "model.path data.train data.eval out resume rounds steering.model steering.ratings "
    "steering.names steering.wanted prompts answers options optim.lr train.epochs train.batch_size "
    "sampling.max_new_tokens",
    "reward_options": "model.path reward_model data.train pairs prompts scorer method options reward_options answers "
    "rounds choose.take optim.lr train.batch_size sampling.max_new_tokens out resume",
    "rollout.responses": f"{TRAINED} eval.measures rewards.model rewards.rules rewards.functions "
    "rollout.responses sampling.max_new_tokens kl.coef",
    "labels.source": "model.path data.train data.eval_fraction labels.source labels.judge.prompt method options rounds "
    "answers choose.take choose.threshold begin refresh.labels scorer sampling.max_new_tokens out resume",
    "front": "model.path data.train optim.lr policy rounds runs steps eta front prompts scorer "
    "rewards.model rewards.functions options parallel out resume",
    "methods": f"{TRAINED} methods options prompts scorer reward_model sampling.max_new_tokens",
    "probe.prompts": f"{TRAINED} eval.measures objective options reference.mode loss.* threshold plus train.max_steps",
    "train.epochs": f"{TRAINED} data.eval data.max_length train.max_steps reward.margin reward.votes reward.ties "
    "reward.loss reward.length_weight ensemble.heads ensemble.combine attributes.outputs attributes.weights "
    "gate.ratings gate.decorrelate gate.verbosity report_to",
    "templates": "model prompts out templates limit seed sampling.max_new_tokens sampling.temperature engine.name "
    "judge.model judge.key_env resume summary",
    "revisions": "file source principles few_shots revisions keep out format columns limit seed judge.model "
    "judge.key_env judge.temperature judge.max_tokens resume summary",
    "principles": "file source principles out format columns limit judge.prompt judge.soft judge.contradiction "
    "judge.model judge.key_env judge.max_tokens resume summary",
    "engine.name": "model prompts out system attributes limit seed sampling.max_new_tokens sampling.temperature "
    "sampling.top_p engine.name",
    "labels": "policies prompts out baseline reference rewards scorer labels toxicity consistency measures checkpoints "
    "answers resume sampling.max_new_tokens sampling.temperature judge.prompt",
    "public_url": "tasks db export load format project backup host port public_url invite machine drain",
    "wait_ms": "model name weights precision host port key_env micro_tokens wait_ms limits.tokens limits.requests "
    "drain",
    "explain": "source file weights ensemble reference beta tokenizer max_length format columns limit out summary "
    "explain",
    "probes": "source file also out scorer by probes benchmark weights ensemble format columns split limit seed",
    "sure": "file out method ratings by least sure annotator format columns limit summary",
    "problems": "file model chat_template format columns split max_length limit show problems",
}
"""An option that marks a kind of command (the first that it has) -> what people set there; `X.*` is a whole section. A
command without any of them has few options and shows them all."""

HEADINGS = {
    "Models": "model reward_model name policies baseline source contrasted critic reference beta tokenizer precision",
    "Data": "tasks db export load project backup data file files pairs also prompts principles choices few_shots "
    "templates demonstrations comparisons "
    "revisions keep filter against format columns split chat_template max_length limit show problems system",
    "What is drawn": "take multi_turn topics complexity",
    "Rounds": "policy rounds begin runs steps merge weight eta front parallel",
    "Objective": "method methods objective options reward_options loss threshold plus reward attributes steering gate "
    "kl distill",
    "Sampled answers and their rewards": "rewards rollout answers scorer labels choose refresh toxicity "
    "consistency measures judge weights ensemble explain sampling engine by probes benchmark "
    "annotator item topic scale ratings least sure",
    "Training": "optim train eval alarm seed",
    "Server": "host port public_url invite machine key_env micro_tokens wait_ms limits drain",
    "Run": "out checkpoints summary dropped resume report_to",
}
"""Heading -> the options and sections under it."""


def basic(options: Sequence[Option]) -> list[Option]:
    """The options of a command that its --help shows."""
    names = {option.name for option in options}
    shown = next((listed.split() for mark, listed in BASIC.items() if mark in names), None)
    if shown is None:
        return list(options)
    return [o for o in options if {o.name, f"{o.name.rpartition('.')[0]}.*"} & set(shown)]


def _grouped(options: Sequence[Option]) -> dict[str, list[Option]]:
    """The same under their headings; under one where they are few."""
    shown = basic(options)
    if len(shown) == len(options):
        return {"Options": shown}
    groups = {
        heading: [option for option in shown if option.name.partition(".")[0] in listed.split()]
        for heading, listed in HEADINGS.items()
    }
    return {heading: group for heading, group in groups.items() if group}


def page(
    command: str,
    about: str,
    options: Sequence[Option],
    values: Mapping[str, Any],
    positional: Sequence[str],
    common: str,
) -> str:
    """The text of `assent COMMAND --help`; `values` are the options' defaults, also those of a file;
    `common` is what holds in every command."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    must = [option for option in options if option.default is REQUIRED and option.name not in positional]
    usage = [f"assent {command}", *(name.upper() for name in positional)]
    usage += [f"--{option.name} {metavar(option.kind)}" for option in must]
    lines = textwrap.wrap(f"usage: {' '.join(usage)} [OPTIONS]", width, subsequent_indent=" " * 7, **WHOLE)
    lines += ["", *textwrap.wrap(about, width)]
    for heading, shown in _grouped(options).items():
        lines += ["", heading]
        for option in shown:
            name = option.name.upper() if option.name in positional else f"--{option.name} {metavar(option.kind)}"
            lines += _entry(
                name.rstrip(), f"{first_sentence(doc(option))} {_default(values[option.name])}".rstrip(), width
            )
    return "\n".join([*lines, "", common, f"assent {command} --help-all lists all {len(options)} options."])


WHOLE: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
COLUMN = 31
"""Where the texts begin."""
WIDEST = 110


def _entry(name: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, max(width - COLUMN, 20), **WHOLE)
    head = f"  {name}"
    if len(head) > COLUMN - 2:
        return [head, *(" " * COLUMN + line for line in wrapped)]
    return [f"{head:<{COLUMN}}{wrapped[0]}", *(" " * COLUMN + line for line in wrapped[1:])]


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "(required)"
    if value is None or value in ((), {}):
        return ""
    words = value if isinstance(value, tuple) else [value]
    return f"[{' '.join(str(word).lower() if isinstance(word, bool) else str(word) for word in words)}]"


def metavar(kind: Any) -> str:
    """What an option's value looks like."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(str(arg) for arg in args) if len(args) <= 3 else "WORD"
    if origin in (Union, types.UnionType):
        return metavar(next(arm for arm in args if arm is not types.NoneType))
    if origin is tuple:
        return f"{metavar(args[0])} ..."
    if origin is dict:
        return "KEY:NUMBER ..." if args[1] is float else "KEY:VALUE ..."
    return {bool: "", int: "N", float: "X"}.get(kind, "TEXT")


def doc(option: Option) -> str:
    """What an option means: the `Doc` in its type, or the string under its field."""
    name = option.name.rpartition(".")[2]
    hint = get_type_hints(option.section, include_extras=True)[name]
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(text := getattr(extra, "documentation", None), str):
            return " ".join(text.split())
    found = (docs(base.__module__).get((base.__name__, name)) for base in option.section.__mro__)
    return " ".join(next((text for text in found if text), "").split())


@cache
def docs(module: str) -> Mapping[tuple[str, str], str]:
    """(class, field) -> the string under the field, of a module."""
    file = getattr(sys.modules[module], "__file__", None)
    found = {}
    for cls in ast.parse(Path(file).read_text(encoding="utf-8")).body if file else ():
        if isinstance(cls, ast.ClassDef):
            for field, text in zip(cls.body, cls.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    found[cls.name, field.target.id] = str(text.value.value)
    return found


def first_sentence(text: str) -> str:
    """The text up to its first full stop that ends a sentence."""
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]
