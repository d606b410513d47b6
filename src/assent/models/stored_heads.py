"""The reward heads that folders, adapters and checkpoints hold: how many outputs, what they are called, and by which
rule they become a reward. Read before any weight is loaded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assent.errors import ModelError
from assent.models.adapters import shapes_in
from assent.models.reward_head import SCALAR, HeadRule, rule_of, shown
from assent.models.sources import Checkpoint, Source
from assent.models.stored import CONFIG, fetched, folder_of, read_object, stored_weights
from assent.models.value_heads import ValueHead, value_head

log = logging.getLogger(__name__)

SECTION = "assent_head"
"""What config.json says of the head: its `weight`, the `class` that reads it ("transformers" or "assent"), where it is
read and was trained, and its rule: `outputs`, `weights`, `scale`, `offset`."""
RULE_FILE = "reward_head.json"
"""The rule beside weights that have no config.json of their own: in a folder of adapters, and in the folder of a run,
for its checkpoints."""
WEIGHTS = frozenset({"score.weight", "classifier.weight"})
"""The heads' weights, as transformers' classes and ours call them."""

NEMOTRON = {
    "quality": 0.0, "toxicity": 0.0, "humor": 0.0, "creativity": 0.0, "helpfulness": 0.3, "correctness": 0.74,
    "coherence": 0.46, "complexity": 0.47, "verbosity": -0.33,
}  # fmt: skip
"""The outputs of SteerLM's and Nemotron's reward models in their order (arXiv 2310.05344, 2406.11704), on a scale from
0 to 4, with the weights of Nemotron-4 340B Reward: those of HelpSteer's five attributes."""

_PLACEHOLDER = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, slots=True)
class StoredHeads:
    """`below`: the outputs of the head that the base folder has, 0 where it has none; `rule`: that of the head on top,
    None where there is no head at all; `value`: the value head that is the base's head."""

    below: int
    rule: HeadRule | None
    value: ValueHead | None = None


def stored_heads(source: Source) -> StoredHeads:
    """What a folder holds, with all that is laid on it. Raises ModelError where it contradicts itself."""
    base = folder_of(source.base, source.revision)
    raw = read_object(base / CONFIG)
    rule, value = _of_config(raw, base / CONFIG), None
    if SECTION not in raw and not WEIGHTS.intersection(stored_weights(fetched(source.base, source.revision))):
        value = value_head(source)
        rule = rule if value is None else _unnamed(value.outputs, value.offset)
    below = 0 if rule is None else len(rule)
    for layer in source.layers:
        shape = next((s for name, s in shapes_in([layer]).items() if name in WEIGHTS), None)
        if shape is not None:
            rule = _of_layer(layer, shape[0], rule)
    return StoredHeads(below, rule, value)


def asked_of(stored: StoredHeads, asked: HeadRule | None, path: str) -> HeadRule:
    """The rule of the head that is to be loaded or, where there is none, made. Raises ModelError where the head there
    has other outputs than those that are asked for."""
    there = stored.rule
    if there is None or asked is None:
        return there or asked or SCALAR
    unnamed = all(_PLACEHOLDER.fullmatch(name) for name in there.names)
    if len(there) != len(asked) or not (unnamed or there.names == asked.names):
        raise ModelError(
            f"{path}: its reward head has {_outputs(there)}; asked for are {_outputs(asked)}. Give a model without a "
            "reward head, or train the outputs that are there."
        )
    return replace(asked, offset=there.offset)


def chosen_output(rule: HeadRule, name: str, path: str, flag: str = "--reward.output") -> int:
    """The place of one output. Raises ModelError where there is none of this name."""
    if name not in rule.names:
        raise ModelError(f"{flag} {name}: {path} has {_outputs(rule)}.")
    return rule.names.index(name)


def write_rule(folder: Path, rule: HeadRule) -> None:
    """Puts the rule beside adapters or checkpoints."""
    (folder / RULE_FILE).write_text(json.dumps(rule.section(), indent=1) + "\n", encoding="utf-8")


def _of_config(raw: Mapping[str, Any], file: Path) -> HeadRule | None:
    """What config.json says: in assent's own words, else in those of transformers."""
    section = raw.get(SECTION)
    if isinstance(section, Mapping) and "outputs" in section:
        rule = rule_of(section, str(file))
        _check_count(raw, rule, file)
        return rule
    if isinstance(section, Mapping):
        return SCALAR  # written before heads had several outputs
    kinds = raw.get("architectures")
    if not isinstance(kinds, list) or not any("SequenceClassification" in str(kind) for kind in kinds):
        return None
    return _labelled(raw)


def _labelled(raw: Mapping[str, Any]) -> HeadRule:
    """The outputs of a classifier's folder, by their labels."""
    labels = raw.get("id2label")
    if isinstance(labels, Mapping) and labels:
        order = sorted(labels, key=lambda key: (not str(key).isdecimal(), int(key) if str(key).isdecimal() else 0))
        names = tuple(str(labels[key]) for key in order)
    else:  # transformers leaves out what is its default: two labels
        count = raw.get("num_labels", 2)
        names = tuple(f"LABEL_{k}" for k in range(count if type(count) is int and count > 0 else 2))
    if len(names) == 1:
        return SCALAR
    if (nine := _nemotron(names, raw)) is not None:
        return nine
    if len(set(names)) < len(names):
        names = tuple(f"LABEL_{k}" for k in range(len(names)))
    return HeadRule(names, ())


def _nemotron(names: tuple[str, ...], raw: Mapping[str, Any]) -> HeadRule | None:
    """The rule of SteerLM's and Nemotron's nine outputs: where they are named so, and said where nine have no names."""
    if tuple(name.lower() for name in names) != tuple(NEMOTRON):
        if len(names) != len(NEMOTRON) or not all(map(_PLACEHOLDER.fullmatch, names)):
            return None
        if raw.get("problem_type") != "regression":
            return None
        log.warning(f"nine outputs without names, read as SteerLM's and Nemotron's: {', '.join(NEMOTRON)}")
    return HeadRule(tuple(NEMOTRON), tuple(NEMOTRON.values()), ((0.0, 4.0),) * len(NEMOTRON))


def _check_count(raw: Mapping[str, Any], rule: HeadRule, file: Path) -> None:
    labels = raw.get("id2label")
    if isinstance(labels, Mapping) and len(labels) != len(rule):
        raise ModelError(f"{file}: id2label has {len(labels)} labels, and {SECTION} {_outputs(rule)}.")


def _of_layer(layer: Path | Checkpoint, outputs: int, below: HeadRule | None) -> HeadRule:
    """The rule of a head in adapters or in a checkpoint, which may be another than that of the base."""
    folder = layer.file.parent.parent.parent if isinstance(layer, Checkpoint) else layer
    if (folder / RULE_FILE).is_file():
        rule = rule_of(read_object(folder / RULE_FILE), str(folder / RULE_FILE))
        if len(rule) == outputs:
            return rule
        raise ModelError(f"{folder / RULE_FILE} names {_outputs(rule)}; the weights beside it have {outputs}.")
    if below is not None and len(below) == outputs:
        return below
    return _unnamed(outputs)


def _unnamed(outputs: int, offset: tuple[float, ...] = ()) -> HeadRule:
    if outputs == 1:
        return replace(SCALAR, offset=offset)
    return HeadRule(tuple(f"LABEL_{k}" for k in range(outputs)), (), offset=offset)


def _outputs(rule: HeadRule) -> str:
    return f"one output ({rule.names[0]})" if len(rule) == 1 else f"{len(rule)} outputs ({shown(rule.names)})"
