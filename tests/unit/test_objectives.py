"""The table of objectives: rows, losses, options, commands and configurations say the same, and what cannot work is
refused before anything is loaded."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from dataclasses import replace
from typing import get_type_hints

import pytest
import torch
from typing_extensions import Doc

from assent import config as public
from assent.cli import COMMANDS
from assent.config import (
    METHODS,
    OBJECTIVES,
    BinaryConfig,
    DataConfig,
    ListConfig,
    ModelConfig,
    PairConfig,
    ReferenceConfig,
    objective_of,
    preference_config,
    reference_of,
    settings,
)
from assent.config.sections import default_of, hints_of
from assent.errors import ConfigError
from assent.losses import LOSSES
from assent.losses.functions import inputs_of

FEEDBACK = {"pairs": "policy_chosen", "binary": "desirable", "ranking": "level", "rating": "rating"}
"""The parameter that only losses on this feedback have."""


def config(objective: str, **options):
    return preference_config(objective, model=ModelConfig("m"), data=DataConfig("t"), out="o", **options)


def refused(objective: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        settings.validate(config(objective, **options))
    return str(caught.value)


def draws(name: str, number: int) -> dict[str, torch.Tensor]:
    """Arguments for the loss of objective `name`."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for argument in inputs_of(LOSSES[OBJECTIVES[name].loss]):
        noise = torch.rand(number, generator=generator, dtype=torch.float64)
        made[argument] = -5 * noise if argument.startswith(("policy", "reference")) else 1 + noise
    return made


def loss_of(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    row = OBJECTIVES[name]
    return LOSSES[row.loss](**tensors, **row.options)


# ---- rows and losses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_and_its_loss_fit(name: str):
    row = OBJECTIVES[name]
    loss = LOSSES[row.loss]
    assert loss.__name__ == row.loss
    keywords = {n: p for n, p in inspect.signature(loss).parameters.items() if p.kind is p.KEYWORD_ONLY}
    required = {n for n, p in keywords.items() if p.default is p.empty}
    assert required <= set(row.options) <= set(keywords)
    inputs = inputs_of(loss)
    assert row.needs_reference == any(argument.startswith("reference") for argument in inputs)
    assert [kind for kind, argument in FEEDBACK.items() if argument in inputs] == [row.feedback]
    assert row.needs_reference == row.reward.startswith("ratio")
    assert set(row.config.__mro__) & {PairConfig, BinaryConfig, ListConfig} == {
        {"pairs": PairConfig, "binary": BinaryConfig}.get(row.feedback, ListConfig)
    }


@pytest.mark.parametrize("name", [name for name, row in OBJECTIVES.items() if row.feedback == "pairs"])
def test_only_losses_that_couple_pairs_see_the_whole_step(name: str):
    tensors = draws(name, 6)
    together = loss_of(name, tensors).sum()
    single = sum(loss_of(name, {key: value[i : i + 1] for key, value in tensors.items()}).sum() for i in range(6))
    assert OBJECTIVES[name].whole_step == (not torch.isclose(together, single, rtol=1e-9))


def test_names_are_unique():
    assert max(Counter(row.name.lower() for row in OBJECTIVES.values()).values()) == 1
    assert max(Counter(row.config.__name__.lower() for row in OBJECTIVES.values()).values()) == 1


def test_configurations_are_called_as_their_rows():
    for row in (*OBJECTIVES.values(), *METHODS.values()):
        plain = re.sub(r"\W", "", row.name.replace("+", "Plus"))
        assert row.config.__name__.lower() == f"{plain}Config".lower()
        assert getattr(public, row.config.__name__) is row.config
        loss = default_of(row.config, "loss")
        assert getattr(public, type(loss).__name__) is type(loss) is hints_of(row.config)["loss"]


def test_an_option_of_several_losses_has_one_type_range_and_help():
    for rows in (OBJECTIVES, METHODS):
        seen: dict[str, object] = {}
        for row in rows.values():
            hints = get_type_hints(type(default_of(row.config, "loss")), include_extras=True)
            for name, hint in hints.items():
                assert seen.setdefault(name, hint) == hint, name
                assert any(isinstance(mark, Doc) for mark in hint.__metadata__), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_command(name: str):
    assert COMMANDS[name].config is OBJECTIVES[name].config
    assert COMMANDS[name].target == "assent.algorithms.preference.train:train_preference"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_configuration_survives_yaml(name: str):
    start = config(name)
    row = OBJECTIVES[name]
    assert vars(start.loss) == dict(row.options) and objective_of(start) == name
    assert (reference_of(start) is not None) == hasattr(start, "reference") == row.needs_reference
    assert isinstance(start, PairConfig) == (row.feedback == "pairs")
    assert isinstance(start, BinaryConfig) == (row.feedback == "binary")
    assert settings.load(row.config, settings.dump(start)) == start
    number = next(option for option, value in row.options.items() if isinstance(value, float))
    changed = replace(start, loss=replace(start.loss, **{number: 0.25}), out="elsewhere")
    again = settings.load(row.config, settings.dump(changed))
    assert again == changed != start and getattr(again.loss, number) == 0.25


def test_only_tr_dpo_begins_with_a_moving_reference():
    modes = {name: config(name).reference.mode for name, row in OBJECTIVES.items() if row.needs_reference}
    assert [name for name, mode in modes.items() if mode != "frozen"] == ["tr-dpo"]
    assert modes["tr-dpo"] == "moving"


# ---- what is refused


@pytest.mark.parametrize("name", [name for name, row in OBJECTIVES.items() if "beta" in row.options])
def test_beta_must_be_positive(name: str):
    assert refused(name, loss={"beta": -0.1}) == "--loss.beta must be > 0. Got -0.1."
    assert refused(name, loss={"beta": 0.0}) == "--loss.beta must be > 0. Got 0.0."


@pytest.mark.parametrize(
    ("objective", "plus", "words"),
    [
        ("dpo", {"dop": 1.0}, "--plus dop:1: no objective is called 'dop'. Known: sft, dpo, cdpo,"),
        ("dpo", {"dpo": 1.0}, "--plus dpo:1: the sum has dpo already"),
        ("dpo", {"kto": 1.0}, "--plus kto:1: kto learns from yes/no labels, dpo from pairs"),
        ("dpo", {"pl-dpo": 1.0}, "--plus pl-dpo:1: pl-dpo learns from rankings, dpo from pairs"),
        ("dpo", {"nca": 1.0}, "--plus nca:1: nca learns from ratings, dpo from pairs"),
        ("dpo", {"tr-dpo": 1.0}, "--plus tr-dpo:1: tr-dpo is dpo with another reference. Use --reference.mode moving."),
        ("dpo", {"sft": 0.0}, "--plus sft:0: a weight must be > 0 and a number that float32 holds."),
        ("dpo", {"sft": -0.5}, "--plus sft:-0.5: a weight must be > 0 and a number that float32 holds."),
        ("dpo", {"ipo": float("nan")}, "--plus ipo:nan: a weight must be > 0 and a number that float32 holds."),
        ("rpo", {"sft": 1.0}, "--plus sft:1: rpo has this term already. Set --loss.sft_weight."),
        ("cpo", {"sft": 1.0}, "--plus sft:1: cpo has this term already. Set --loss.sft_weight."),
        ("orpo", {"sft": 1.0}, "--plus sft:1: orpo has this term already, with weight 1."),
        ("simpo", {"dpo": 0.5}, "--plus dpo:0.5: dpo needs a reference, simpo has none. Turn it round: assent dpo"),
    ],
)  # fmt: skip
def test_what_plus_cannot_add(objective: str, plus: dict[str, float], words: str):
    assert refused(objective, plus=plus).startswith(words)


def test_what_plus_can_add():
    settings.validate(config("dpo", plus={"sft": 0.2, "ipo": 0.5, "simpo": 1.0, "aot": 0.1}))
    settings.validate(config("simpo", plus={"sft": 0.2, "cpo": 0.5}))
    settings.validate(config("tr-dpo", plus={"ipo": 1.0}))


def test_gamma_is_a_gap_per_token():
    assert "--loss.gamma 1 is a gap per token" in refused("simpo", loss={"length_normalised": False})
    settings.validate(config("simpo", loss={"length_normalised": False, "gamma": 0.0}))


def test_exo_needs_smoothed_labels():
    assert "--loss.label_smoothing must be > 0 for exo" in refused("exo", loss={"label_smoothing": 0.0})
    assert "below 0.5. Got 0.5" in refused("exo", loss={"label_smoothing": 0.5})
    settings.validate(config("cpo", loss={"label_smoothing": 0.0}))


def test_where_reference_logprobs_cannot_come_from():
    cached = ReferenceConfig(mode="cached")
    assert "tdpo compares whole distributions" in refused("tdpo", reference=cached)
    assert "tdpo compares whole distributions" in refused("dpo", reference=cached, plus={"tdpo": 0.5})
    settings.validate(config("dpo", reference=cached))
    for mode in ("frozen", "moving"):
        words = refused("dpo", reference=ReferenceConfig(mode=mode, cache="file.safetensors"))
        assert words.endswith(f"is read only with --reference.mode cached. Got --reference.mode {mode}.")
    for name, value in {"rate": 0.0, "every": 0, "path": "", "cache": ""}.items():
        assert f"--reference.{name} must be" in refused("dpo", reference=ReferenceConfig(**{name: value}))
