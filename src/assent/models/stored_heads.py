"""The reward heads that folders, adapters and checkpoints hold: how many outputs, what they are called, and by which
rule they become a reward. Read before any weight is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assent.errors import ModelError
from assent.models.adapters import shapes_in
from assent.models.reward_head import SCALAR, HeadRule, rule_of, shown
from assent.models.sources import Checkpoint, Source
from assent.models.stored import CONFIG, folder_of, read_object

SECTION = "assent_head"
"""What config.json says of the head: its `weight`, the `class` that reads it ("transformers" or "assent"), where it is
read and was trained, and its rule: `outputs`, `weights`, `scale`, `offset`."""
RULE_FILE = "reward_head.json"
"""The rule beside weights that have no config.json of their own: in a folder of adapters, and in the folder of a run,
for its checkpoints."""
WEIGHTS = ("score.weight", "classifier.weight")
"""The heads' weights, as transformers' classes and ours call them."""

_PLACEHOLDER = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, slots=True)
class StoredHeads:
    """`below`: the outputs of the head that the base folder has, 0 where it has none; `rule`: that of the head on top,
    None where there is no head at all."""

    below: int
    rule: HeadRule | None


def stored_heads(source: Source) -> StoredHeads:
    """What a folder holds, with all that is laid on it. Raises ModelError where it contradicts itself."""
    rule = _of_config(source)
    below = 0 if rule is None else len(rule)
    for layer in source.layers:
        shape = next((s for name, s in shapes_in([layer]).items() if name in WEIGHTS), None)
        if shape is not None:
            rule = _of_layer(layer, shape[0], rule)
    return StoredHeads(below, rule)


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


def _of_config(source: Source) -> HeadRule | None:
    """What config.json says: in assent's own words, else in those of transformers."""
    file = folder_of(source.base, source.revision) / CONFIG
    raw = read_object(file)
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
    if len(set(names)) < len(names):
        names = tuple(f"LABEL_{k}" for k in range(len(names)))
    return HeadRule(names, ())


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
    return SCALAR if outputs == 1 else HeadRule(tuple(f"LABEL_{k}" for k in range(outputs)), ())


def _outputs(rule: HeadRule) -> str:
    return f"one output ({rule.names[0]})" if len(rule) == 1 else f"{len(rule)} outputs ({shown(rule.names)})"
