"""The `assent` command: one table of commands, each a thin face over a public function.

Only the configuration is imported before the options are known to be right; the function, and torch with it, comes
after.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from assent import __version__, arguments, config, messages, process, shorthelp, streams
from assent.config import METHODS, OBJECTIVES, REWARD_MODELS, TRAINERS, Method, Objective, nodes, settings
from assent.config.relations import WORDS
from assent.errors import AssentError, ConfigError
from assent.foreign import print_traceback
from assent.names import suggestion

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """`target` is "module:function"; `positional` are the options that are given without their names, in this order, of
    which one may take several words; `about` begins the help (default: what the class says)."""

    config: type
    help: str
    target: str
    positional: tuple[str, ...] = ()
    about: str | None = None


def _learning(name: str, row: Objective | Method) -> Command:
    """The command of a row."""
    about = f"{row.name}: {row.summary.rstrip('.')} (arXiv {row.paper})."
    return Command(row.config, f"{row.name}: {row.summary}", TRAINERS[name].target, about=about)


def _reward_model(name: str) -> Command:
    row = REWARD_MODELS[name]
    about = f"{row.summary.rstrip('.')} (arXiv {row.paper})."
    return Command(row.config, f"Train a reward model from {row.data}.", row.target, about=about)


COMMANDS: dict[str, Command] = {
    "init": Command(
        config.InitConfig, "Train a tokenizer and write a small random model.", "assent.models.init:init_model"
    ),
    "data": Command(
        config.InspectConfig, "Show what a data file holds.", "assent.data.inspect:inspect_file", ("file",)
    ),
    "sft": Command(config.SFTConfig, "Supervised fine-tuning.", TRAINERS["sft"].target),
    **{name: _reward_model(name) for name in REWARD_MODELS},
    **{name: _learning(name, row) for name, row in OBJECTIVES.items()},
    "eval": Command(
        config.EvalConfig,
        "Policies on the same prompts: every number.",
        "assent.evaluate.evaluation:evaluate",
        ("policies",),
    ),
    "trust": Command(
        config.TrustConfig,
        "How far a reward can be trusted, on judged answers.",
        "assent.evaluate.trust:trust",
        ("source", "file"),
    ),
    "compare": Command(
        config.CompareConfig, "Several methods on the same data, one report.", "assent.evaluate.compare:compare"
    ),
    **{name: _learning(name, row) for name, row in METHODS.items()},
    "iterate": Command(
        config.IterateConfig,
        "Rounds: sample, label, choose, train, evaluate.",
        "assent.loops.iterate:iterate",
    ),
    "apo": Command(
        config.ApoConfig,
        "Reward model and policy in turns (adversarial preference optimisation).",
        "assent.loops.apo:apo",
        about="A reward model learns to tell golden answers (--data.train) from the policy's own, beside pairs that "
        "people compared, and the policy learns from it: in turns (adversarial preference optimisation, arXiv "
        "2311.08045).",
    ),
    "custom": Command(
        config.CustomConfig, "An objective of your own, directly from feedback.", TRAINERS["custom"].target
    ),
    "check": Command(
        config.CheckConfig, "Whether a loss or estimator of your own learns.", "assent.lab.check:check", ("function",)
    ),
    "warp": Command(
        config.WarpConfig,
        "WARP: rounds of several runs of RL, merged; the front of KL and reward.",
        "assent.loops.warp:warp",
        about="WARP (arXiv 2406.16768): in each round several runs of reinforcement learning from one start, held to a "
        "moving average of themselves; their task vectors are merged on the sphere; the next round starts a part of "
        "the way from the last start to the merged model. At the end the models between the first start and the merged "
        "one are evaluated: the front of KL and reward.",
    ),
    "steerlm": Command(
        config.SteerLMConfig, "Answers that can be asked to be so or so.", "assent.loops.steerlm:steerlm"
    ),
    "generate": Command(config.GenerateConfig, "Answer prompts, or chat.", "assent.rollout.chat:generate", ("model",)),
    "serve": Command(config.ServeConfig, "A reward model over HTTP.", "assent.serve.run:serve", ("model",)),
    "export": Command(
        config.ExportConfig,
        "A plain model folder of any run or checkpoint.",
        "assent.algorithms.export:export",
        ("model",),
    ),
    "merge": Command(
        config.MergeConfig,
        "One model of several, by their weights.",
        "assent.algorithms.merge:merge",
        ("models",),
    ),
    "score": Command(
        config.ScoreConfig, "Rewards of the answers in a file.", "assent.evaluate.score:score", ("source", "file")
    ),
    "curate": Command(
        config.CurateConfig, "Prompts that are worth labelling.", "assent.people.curate.run:curate", ("prompts",)
    ),
    "judge": Command(
        config.JudgeFileConfig, "Verdicts of judges on answers, as rows.", "assent.people.judge:judge", ("file",)
    ),
    "critique": Command(
        config.CritiqueConfig,
        "Critiques and revisions by principles.",
        "assent.people.critique:critique",
        ("file",),
    ),
    "agree": Command(config.AgreeConfig, "How far annotators agree.", "assent.people.agree:agree", ("files",)),
    "aggregate": Command(
        config.AggregateConfig,
        "Votes of several annotators as one label each.",
        "assent.people.aggregate:aggregate",
        ("file",),
    ),
    "label": Command(
        config.LabelConfig, "The annotation server: people label answers.", "assent.people.label:label", ("tasks",)
    ),
    "contrast": Command(
        config.ContrastConfig,
        "Pairs by contrasting prompts.",
        "assent.people.contrast:contrast",
        ("model",),
    ),
    "constitution": Command(
        config.ConstitutionConfig,
        "Constitutional AI: revisions, choices, reward model, policy.",
        "assent.loops.constitution:constitution",
    ),
    "rlcd": Command(config.RLCDConfig, "RLCD: contrasting prompts, reward model, policy.", "assent.loops.rlcd:rlcd"),
    "report": Command(
        config.ReportConfig, "One HTML page from run folders.", "assent.evaluate.report:write_report", ("runs",)
    ),
    "watch": Command(
        config.WatchConfig, "A running job, live, from its files.", "assent.evaluate.watch:watch", ("runs",)
    ),
    "demo": Command(config.DemoConfig, "The whole job on an embedded world.", "assent.lab.demo:run_demo"),
    "env": Command(config.EnvConfig, "Versions, hardware and extras.", "assent.environment:describe"),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "Data and models": ("init", "data", "export", "merge", "env"),
    "Demonstrations and reward models": ("sft", *REWARD_MODELS, "serve"),
    **{
        f"Directly from {words}": tuple(name for name, row in OBJECTIVES.items() if row.feedback == kind)
        for kind, words in {"pairs": "pairs", **WORDS}.items()
    },
    "From rewards of sampled answers": tuple(METHODS),
    "In rounds": ("iterate", "warp", "apo", "steerlm", "constitution", "rlcd"),
    "By a function of your own": ("custom", "check"),
    "People and AI feedback": ("curate", "label", "judge", "critique", "contrast", "agree", "aggregate"),
    "Evaluation": ("generate", "eval", "score", "trust", "compare", "report", "watch", "demo"),
}
"""The commands under the headings of `assent --help`."""

COMMON = """--config FILE reads options from YAML; the command line wins over it.
--dry_run prints the resolved options and stops."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0; 2 for a mistake of the user's; 3 for a number that is not finite; 4
    where all was done and written but for what a server did not answer; 5 for a run that its drift alarm stopped; 130
    when interrupted; 141 when whoever reads standard output has left. Exceptions that assent does not raise on purpose
    keep their traceback."""
    closed = streams.prepare()
    messages.show()
    saved = False
    try:
        saved = _run(list(sys.argv[1:] if words is None else words))
        problem = streams.broken() or closed
    except AssentError as error:
        streams.broken()
        log.error(_in_own_options(str(error), list(sys.argv[1:] if words is None else words)))
        return error.exit_code
    except KeyboardInterrupt:
        streams.broken()
        log.info("interrupted")
        return 130
    except (OSError, SystemExit):  # rich makes a SystemExit of a reader that left
        if (problem := streams.broken()) is None:
            raise
    if problem is None or saved:
        return 0
    if problem.reader_left:
        return 141
    log.error("standard output: %s. What was to be printed there is lost.", problem.reason)
    return 2


def _in_own_options(text: str, words: Sequence[str]) -> str:
    """A message about the rows of a file, for commands that have the options of `data` without that section."""
    command = COMMANDS.get(words[0]) if words else None
    own = set() if command is None else {field.name for field in dataclasses.fields(command.config)}
    for option in ("columns", "format"):
        if option in own:
            text = text.replace(f"--data.{option}", f"--{option}")
    return text


def _run(words: list[str]) -> bool:
    """Whether the result is in files, and what was printed only tells about it."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return False
    if words[0] == "--version":
        print(f"assent {__version__}")
        return False
    name, *rest = words
    if name not in COMMANDS:
        raise ConfigError(f"Unknown command '{name}'.{suggestion(name, COMMANDS)} See: assent --help")
    try:
        dry_run, options = parse(name, rest)
    except SystemExit as end:  # --help
        if end.code:
            raise
        return False
    if dry_run:
        print(settings.dump(options), end="")
        return False
    function = _function(COMMANDS[name].target)
    if getattr(options, "out", None) is None:
        function(options)
        return False
    with process.steady_output():
        function(options)
    return True


def entry() -> None:
    """The console script."""
    sys.excepthook = print_traceback
    process.adopt()
    try:
        code = main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code:
        process.leave(code)
    sys.exit(0)


def overview() -> str:
    """The text of `assent --help`."""
    width = max(map(len, COMMANDS))
    rows = []
    for heading, names in GROUPS.items():
        rows += [heading, *(f"  {name:<{width}}  {COMMANDS[name].help}" for name in names), ""]
    return "\n".join(
        [
            "usage: assent COMMAND [OPTIONS]",
            "",
            "Teach a language model what people prefer.",
            "",
            *rows,
            "assent COMMAND --help lists the options that people set, --help-all all of them. In every command:",
            *("  " + line for line in COMMON.splitlines()),
        ]
    )


def parse(name: str, args: Sequence[str]) -> tuple[bool, Any]:
    """(dry run?, the checked configuration) of a command. Raises `ConfigError`; --help prints and raises
    `SystemExit(0)`."""
    command = COMMANDS[name]
    rest, file = arguments.take_config(list(args))
    if {"-h", "--help"} & set(rest):
        print(_short_help(name, file))
        raise SystemExit(0)
    rest = ["--help" if arg in ("--help-all", "--help_all") else arg for arg in rest]
    import tyro

    dry_run = any(arg in ("--dry_run", "--dry-run") for arg in rest)
    rest = [arg for arg in rest if arg not in ("--dry_run", "--dry-run")]
    default: Any = settings.read(command.config, file, tyro.MISSING) if file else None
    if "--help" not in rest:
        known = settings.options(command.config)
        given = {option.name for option in known if default and settings.value_of(default, option.name) != tyro.MISSING}
        rest = arguments.check(name, known, command.positional, rest, given if default else set())
    cls = command.config if "--help" not in rest else _with_positional(command.config, command.positional)
    default = settings.read(cls, file, tyro.MISSING) if file else settings.load(cls, "", missing=tyro.MISSING)
    parsed = tyro.cli(
        cls,
        args=rest,
        default=default,
        prog=f"assent {name}",
        description=f"{command.about or command.config.__doc__}\n\n{COMMON}",
        use_underscores=True,
        registry=_mappings(),
    )
    fields = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    result = command.config(**fields)
    settings.validate(result)
    return dry_run, result


def _short_help(name: str, file: str | None) -> str:
    command = COMMANDS[name]
    options = settings.options(command.config)
    values = {option.name: option.default for option in options}
    if file:
        given: Any = settings.read(command.config, file, missing := object())
        values |= {o: value for o in values if (value := settings.value_of(given, o)) is not missing}
    return shorthelp.page(
        name, command.about or command.config.__doc__ or "", options, values, command.positional, COMMON
    )


def _with_positional(cls: type, names: Sequence[str]) -> type:
    """A copy of a configuration class whose help shows the options `names` without their names. (`arguments.check` has
    read them.)"""
    if not names:
        return cls
    import tyro

    annotated: Any = Annotated
    positional: Any = tyro.conf.Positional
    hints = get_type_hints(cls)
    marked = {name: annotated[positional[hints[name]], tyro.conf.arg(metavar=name.upper())] for name in names}
    body = {"__annotations__": marked, "__doc__": cls.__doc__, "__module__": cls.__module__}
    return dataclasses.dataclass(frozen=True)(type(cls.__name__, (cls,), body))


def _mappings() -> Any:
    """How `--data.columns prompt:question response:answer` and `--plus sft:0.2` are read."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    def read(words: list[str], kind: type) -> dict[str, Any]:
        pairs = dict(word.split(":", 1) for word in words if ":" in word)
        if len(pairs) < len(words):
            raise ValueError("these are written KEY:VALUE, each key once")
        convert = nodes.scalar if kind == nodes.SCALAR else kind
        return {key: convert(value) for key, value in pairs.items()}

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type_origin is not dict:
            return None
        kind = get_args(info.type)[1]
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="KEY:NUMBER" if kind is float else "KEY:VALUE",
            instance_from_str=lambda words: read(words, kind),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{key}:{name}" for key, name in value.items()],
        )

    return registry


def _function(target: str) -> Callable[[Any], Any]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)
