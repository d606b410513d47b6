"""Sections of configurations: an option that is set alone leaves every other at the method's default, whether it comes
from Python, YAML or the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from assent import cli
from assent.cli import COMMANDS
from assent.config import (
    GRPOKL,
    METHODS,
    OBJECTIVES,
    BetaLoss,
    CPOConfig,
    CPOLoss,
    DataConfig,
    GenerateConfig,
    GRPOConfig,
    GRPOLoss,
    KLConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ReferenceConfig,
    RolloutConfig,
    SFTConfig,
    ShapingConfig,
    critic_of,
    keywords,
    loss_of,
    online_config,
    preference_config,
    reference_of,
    settings,
)
from assent.config.sections import Sections, configuration, default_of, sections_of
from assent.errors import ConfigError

LEARNING = {name: row.config for name, row in {**OBJECTIVES, **METHODS}.items()}
REQUIRED: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": "t"}, "out": "o"}
WORDS = ["--model.path", "m", "--data.train", "t", "--out", "o"]
OWN = ("loss", "rollout", "kl", "shaping", "reference", "critic")
"""Sections whose defaults methods change, or that they alone have."""


def made(name: str, options: dict[str, Any]) -> Any:
    """From Python."""
    return (online_config if name in METHODS else preference_config)(name, **options)


def another(option: settings.Option) -> Any:
    """A value of an option's type that is not its default."""
    kind, default = option.kind, option.default
    for arm in get_args(kind) if get_origin(kind) is not Literal else ():
        if get_origin(kind) not in (tuple, dict):
            kind = arm
            break
    if kind is bool:
        return not default
    if kind is int:
        return (default or 0) + 3
    if kind is float:
        return (default or 0.0) + 0.125
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != default)
    if get_origin(kind) is tuple:
        (item,) = {arm for arm in get_args(kind) if arm is not ...}
        return {str: ("one", "two"), float: (0.5, -1.5)}.get(item) or get_args(item)[:2]
    if get_origin(kind) is dict:
        return {"one": 0.5} if get_args(kind)[1] is float else {"one": "two"}
    return "else"


def nested(name: str, value: Any) -> dict[str, Any]:
    """{"kl": {"coef": value}} of "kl.coef"."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: one.get(key, other.get(key)) for key in {**one, **other}}
    for key in one.keys() & other.keys():
        both[key] = merged(one[key], other[key]) if isinstance(one[key], dict) else other[key]
    return both


def words(option: settings.Option, value: Any) -> list[str]:
    """An option on the command line."""
    section, dot, last = option.name.rpartition(".")
    if isinstance(value, bool):
        return [f"--{section}{dot}{last if value else f'no_{last}'}"]
    items = [f"{key}:{item}" for key, item in value.items()] if isinstance(value, dict) else value
    return [f"--{option.name}", *map(str, items if isinstance(items, list | tuple) else [items])]


def plain(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", LEARNING)
def test_an_option_set_alone_leaves_the_others_at_the_methods_defaults(name: str):
    cls = LEARNING[name]
    names = [option.name for option in settings.options(cls)]
    defaults = settings.load(cls, yaml.safe_dump(REQUIRED))
    start = {name: settings.value_of(defaults, name) for name in names}
    for option in settings.options(cls):
        value = another(option)
        options = merged(REQUIRED, nested(option.name, plain(value)))
        from_yaml = settings.load(cls, yaml.safe_dump(options))
        changed = {name: got for name in names if (got := settings.value_of(from_yaml, name)) != start[name]}
        assert changed == {option.name: value}
        for from_python in (made(name, options), made(name, merged(REQUIRED, nested(option.name, value)))):
            assert from_python == from_yaml and type(from_python) is cls, option.name


def test_python_and_yaml_are_written_alike():
    """The whole number 1 as the number 1.0, a list as a tuple."""
    options = {"optim": {"lr": 1}, "rewards": {"weights": {"a": 2}, "rules": ["exact"]}, "kl": {"target": 3}}
    from_python = online_config("grpo", **REQUIRED, **options, report_to=["wandb"])
    from_yaml = settings.load(LEARNING["grpo"], settings.dump(from_python))
    assert settings.dump(from_python) == settings.dump(from_yaml) and from_python == from_yaml
    assert "lr: 1.0\n" in settings.dump(from_python) and from_python.report_to == ("wandb",)
    instance = SFTConfig(ModelConfig("m", lora=LoraConfig(8, targets=["q"])), DataConfig("t"), "o")
    assert instance.model.lora.targets == ("q",)


def together(cls: type, sections: tuple[str, ...]) -> Iterator[list[settings.Option]]:
    """The options of these sections in two lots, so that of each section some are given and some are not."""
    known = [option for option in settings.options(cls) if option.name not in ("model.path", "data.train", "out")]
    groups = [[option for option in known if option.name.rpartition(".")[0] == section] for section in sections]
    for half in (0, 1):
        yield [option for group in groups for option in group[half::2]]


@pytest.mark.parametrize("name", LEARNING)
def test_the_command_line_gives_what_python_gives(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "validate", lambda config: None)  # single options contradict one another
    every = tuple({option.name.rpartition(".")[0] for option in settings.options(LEARNING[name])})
    for lot in together(LEARNING[name], every if name in ("ppo", "dpo", "kto") else OWN):
        options, line = REQUIRED, [*WORDS]
        for option in lot:
            value = another(option)
            options, line = merged(options, nested(option.name, value)), line + words(option, value)
        assert cli.parse(name, line)[1] == made(name, options), line


def test_the_papers_defaults_survive_a_weight_of_the_kl():
    config = online_config("grpo", **REQUIRED, kl={"coef": 0.1})
    assert (config.kl.coef, config.kl.place, config.kl.estimator) == (0.1, "loss", "k3")
    ppo = online_config("ppo", **REQUIRED, rollout={"responses": 4})
    assert (ppo.rollout.responses, ppo.rollout.epochs, ppo.rollout.minibatches) == (4, 2, 2)
    gspo = LEARNING["gspo"](**REQUIRED, rollout={"target_kl": 0.1})
    assert (gspo.rollout.responses, gspo.rollout.minibatches, gspo.rollout.target_kl) == (8, 4, 0.1)
    moving = preference_config("tr-dpo", **REQUIRED, reference={"rate": 0.5})
    assert (moving.reference.mode, moving.reference.rate) == ("moving", 0.5)


@pytest.mark.parametrize("name", LEARNING)
def test_a_generic_section_is_refused_where_the_method_has_defaults_of_its_own(name: str):
    generic = {"rollout": RolloutConfig(show=5), "kl": KLConfig(horizon=5), "shaping": ShapingConfig(clip=5.0)}
    if name in OBJECTIVES:
        generic = {"reference": ReferenceConfig(every=5)} if OBJECTIVES[name].needs_reference else {}
    changes = {section: default_of(LEARNING[name], section) != type(given)() for section, given in generic.items()}
    for section, changed in changes.items():
        given = generic[section]
        if not changed:
            assert getattr(made(name, {**REQUIRED, section: given}), section) == given
            continue
        for make in (made, lambda name, options: LEARNING[name](**options)):
            with pytest.raises(ConfigError, match=rf"{section}: \w+\(...\) would set every option") as caught:
                make(name, {**REQUIRED, section: given})
            assert f"{section}={{" in str(caught.value) and ": 5" in str(caught.value)
        whole = getattr(made(name, {**REQUIRED, section: vars(given)}), section)
        assert vars(whole) == vars(given)


def test_the_classes_are_written_as_their_commands_are():
    grpo = GRPOConfig(ModelConfig("m"), DataConfig("t"), "o", kl=GRPOKL(coef=0.1), loss=GRPOLoss(clip=0.3))
    assert grpo == online_config("grpo", **REQUIRED, kl={"coef": 0.1}, loss={"clip": 0.3})
    cpo = CPOConfig(ModelConfig("m"), DataConfig("t"), "o", loss=CPOLoss(sft_weight=0.5))
    assert cpo == preference_config("cpo", **REQUIRED, loss={"sft_weight": 0.5})
    with pytest.raises(ConfigError, match=r"loss: BetaLoss\(...\) would set every option .* \(sft_weight=1.0, label_"):
        CPOConfig(**REQUIRED, loss=BetaLoss(0.5))


def test_what_only_some_have_is_none_for_the_others():
    critic = critic_of(online_config("ppo", **REQUIRED, critic={"lr": 1e-4}))
    assert critic is not None and critic.lr == 1e-4 and critic_of(online_config("grpo", **REQUIRED)) is None
    for name, row in OBJECTIVES.items():
        config = preference_config(name, **REQUIRED)
        assert (reference_of(config) is None) != row.needs_reference and loss_of(config) is config.loss
        assert keywords(loss_of(config)) == row.options
    assert reference_of(SFTConfig(**REQUIRED)) is None


def test_what_no_section_is():
    with pytest.raises(ConfigError, match=r"kl must be a mapping of options or a GRPOKL. Got float."):
        online_config("grpo", **REQUIRED, kl=0.1)
    with pytest.raises(ConfigError, match=r"loss must be a mapping of options or a GRPOLoss. Got PPOLoss."):
        online_config("grpo", **REQUIRED, loss=online_config("ppo", **REQUIRED).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": {"coeff": 0.1}}, "Unknown option 'kl.coeff'. Perhaps you meant 'kl.coef'."),
        ({"kl": {"kl_coef": 0.1}}, "Unknown option 'kl.kl_coef'. Perhaps you meant 'kl.coef'."),
        ({"rollout": {"num_generations": 4}}, "Unknown option 'rollout.num_generations'. Perhaps you"),
        ({"rollouts": {}}, "Unknown option 'rollouts'. Perhaps you meant 'rollout'."),
        ({"model": {"path": "m", "lora": {"rnk": 8}}}, "Unknown option 'model.lora.rnk'. Perhaps you"),
        ({"model": {}}, "'model.path' is missing, and it has no default."),
    ],
)  # fmt: skip
def test_unknown_and_missing_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        online_config("grpo", **{**REQUIRED, **options})
    assert str(caught.value).startswith(message)


def test_unknown_methods_and_missing_sections_are_named():
    with pytest.raises(ConfigError, match="no online method 'grop'. Perhaps you meant 'grpo'."):
        online_config("grop", **REQUIRED)
    with pytest.raises(ConfigError, match="no objective 'simp'. Perhaps you meant 'simpo'."):
        preference_config("simp", **REQUIRED)
    with pytest.raises(ConfigError, match="'out' is missing, and it has no default"):
        preference_config("dpo", model={"path": "m"}, data={"train": "t"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": {"lr": "1e-4"}}, "--optim.lr must be a number. Got '1e-4'."),
        ({"optim": {"lr": True}}, "--optim.lr must be a number. Got True."),
        ({"optim": {"lr": 10**400}}, "--optim.lr must be a number. Got 1000"),
        ({"train": {"epochs": 1.5}}, "--train.epochs must be a whole number. Got 1.5."),
        ({"train": {"epochs": True}}, "--train.epochs must be a whole number. Got True."),
        ({"train": {"max_steps": "3"}}, "--train.max_steps must be a whole number or null. Got '3'."),
        ({"kl": {"place": "losses"}}, "--kl.place must be one of reward, loss. Got 'losses'."),
        ({"rewards": {"rules": "numeric"}}, "--rewards.rules must be a list of values, each text"),
        ({"rewards": {"weights": {"numeric": "1"}}}, "--rewards.weights must be a mapping from text to numbers."),
        ({"data": {"train": None}}, "--data.train must be text"),
    ],
)
def test_values_of_a_wrong_type_are_named(options: dict[str, Any], message: str):
    config = online_config("grpo", **{"rewards": {"rules": ["numeric"]}, **REQUIRED, **options})
    with pytest.raises(ConfigError) as caught:
        settings.validate(config)
    assert str(caught.value).startswith(message)


def test_every_configuration_with_sections_takes_them_in_the_same_way():
    seen = set()
    classes: list[type] = [command.config for command in COMMANDS.values()]
    while classes:
        cls = classes.pop()
        if inner := sections_of(cls):
            assert issubclass(cls, Sections), cls
            seen.add(cls.__name__)
            classes += inner.values()
    assert {"SFTConfig", "ModelConfig", "GenerateConfig", "CompareConfig", "GRPOConfig"} <= seen


def test_sections_within_sections_and_instances_are_mixed_freely():
    config = SFTConfig(model={"path": "m", "lora": {"rank": 8}}, data=DataConfig("t"), out="o", optim={"lr": 1e-3})
    assert config == SFTConfig(ModelConfig("m", lora=LoraConfig(8)), DataConfig("t"), "o", optim=OptimConfig(1e-3))
    assert GenerateConfig("m", sampling={"top_k": 3}).sampling.top_k == 3
    again = dataclasses.replace(config, optim={"warmup": 0.5})
    assert again.optim == OptimConfig(warmup=0.5)  # from the defaults, as always; replace(config.optim, ...) keeps lr


def test_a_section_begins_with_the_enclosing_default():
    """Also two levels down, where the outer class changes a default of the inner section."""

    @dataclasses.dataclass(frozen=True)
    class Outer(Sections):
        model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig("m", lora=LoraConfig(4, alpha=3.0)))

    Outer.__annotations__["model"] = ModelConfig
    made = configuration(Outer, {"model": {"lora": {"rank": 8}}})
    assert made.model == ModelConfig("m", lora=LoraConfig(8, alpha=3.0))
