"""The model folders that a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from assent import distributed
from assent.models.heads import save_reward_model, usage_of
from assent.models.policy import Backbone, ScoreModel
from assent.models.readback import Finding, own_numbers, read_back
from assent.models.recipe import Usage
from assent.models.saving import replacing, save_model, stop_ids
from assent.outputs import write_text
from assent.train.session import Session

Card = Callable[[Usage | None, str], str]
"""The model card's text, from how a reward model's folder is read and how the folder was checked."""


@dataclass(frozen=True, slots=True)
class Written:
    """What reading a model folder back has shown, and of a reward model how it is read elsewhere."""

    checked: Finding
    usage: Usage | None

    @property
    def notes(self) -> list[str]:
        """What its readers should know."""
        return [
            *([self.checked.words] if self.checked.beware else []),
            *(f"{note}." for note in (self.usage.notes if self.usage else ())),
        ]


def write_final(session: Session, backbone: Backbone, folder: Path, card: Card, *, compared: bool) -> Written:
    """Writes a model's folder, whole or not at all, and reads it back; with `compared`, also what transformers alone
    makes of a reward model. Every rank must call it."""
    own = own_numbers(backbone, session.tokenizer)
    state = distributed.full_state_dict(backbone)
    return distributed.on_main(partial(_write, session, backbone, folder, card, state, own, compared))


def _write(
    session: Session,
    backbone: Backbone,
    folder: Path,
    card: Card,
    state: Mapping[str, Tensor],
    own: Tensor,
    compared: bool,
) -> Written:
    dtype, usage = session.config.model.save_dtype, None
    with replacing(folder) as partial:
        if isinstance(backbone, ScoreModel):
            written = save_reward_model(backbone, session.chat, partial, state, dtype=dtype)
        else:
            weights = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
            ends = stop_ids(session.chat, backbone.plain.generation_config)
            written = save_model(backbone, session.tokenizer, partial, weights, dtype=dtype, stops=ends)
        rounded = session.world.size > 1 and backbone.precision == "bf16"
        checked = read_back(backbone, session.tokenizer, partial, written, own, dtype, rounded=rounded)
        if isinstance(backbone, ScoreModel):
            usage = usage_of(backbone.plain, session.chat, partial, session.config.model if compared else None)
        write_text(partial / "README.md", card(usage, checked.words))
    return Written(checked, usage)
