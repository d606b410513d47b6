"""Whether the weights of a folder are those that its configuration asks for."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from assent.errors import ModelError

log = logging.getLogger(__name__)

HARMLESS = re.compile(r"rotary_emb\.inv_freq$|(^|\.)attn\.(masked_)?bias$|position_ids$")
"""Surplus that says nothing: buffers that older versions stored."""
HEADS = ("lm_head.", "embed_out.", "output.", "cls.", "head.", "language_model.lm_head.")
"""What the names of output heads begin with."""
TOLD = re.compile(r"vis(ion|ual)|audio|image|projector|(^|\.)mtp|v(alue)?_head|nextn")
"""Parts that are left behind and said: towers for pictures and sound, heads that predict further tokens or values."""


def check_keys(
    folder: str, missing: Collection[str], surplus: Collection[str], mismatched: Collection[Any], *, headless: str
) -> None:
    """Raises ModelError where weights are missing, of another shape, or left over, unless what is left over is known to
    do no harm; parts that are left behind are said. `headless` is the task: a classifier replaces the output head."""
    if mismatched:
        first = min(mismatched, key=lambda found: found[0])
        shown = f"{first[0]} has the shape {tuple(first[1])}, but config.json asks for {tuple(first[2])}"
        raise ModelError(f"{folder}: {shown}{_more(mismatched)}. The configuration belongs to other weights.")
    if headless == "CAUSAL_LM" and any(name.startswith("score.") for name in surplus):
        raise ModelError(f"{folder} is a reward model's folder (it has score.weight), not a causal language model's.")
    if missing:
        what = "causal language model" if headless == "CAUSAL_LM" else "reward model"
        shown = ", ".join(sorted(missing)[:3])
        tied = all(name.startswith(HEADS) for name in missing)
        hint = " Is tie_word_embeddings in its config.json right?" if tied else ""
        raise ModelError(f"{folder} is not a {what}'s folder: it lacks {shown}{_more(missing, 3)}.{hint}")
    told = {name for name in surplus if TOLD.search(name)}
    unknown = sorted(name for name in surplus if name not in told and not HARMLESS.search(name))
    if headless != "CAUSAL_LM":
        unknown = [name for name in unknown if not name.removeprefix("model.").startswith(HEADS)]
    if unknown:
        raise ModelError(
            f"{folder}: its weights hold {', '.join(unknown[:3])}{_more(unknown, 3)}, for which config.json has no "
            "place (are there as many layers as it says?). Loaded like this, a part of the model would be missing."
        )
    if told:
        parts = sorted({".".join(name.split(".")[:2]) for name in told})
        log.warning(f"{folder}: not loaded, and not in what is saved: {', '.join(parts[:4])} ({len(told)} weights)")


def check_tied(model: PreTrainedModel, folder: str) -> None:
    """Raises ModelError where the configuration ties weights of which the folder has two."""
    asked: Mapping[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    if apart := sorted(asked.keys() - model.all_tied_weights_keys.keys()):
        raise ModelError(
            f"{folder}: config.json ties {apart[0]} to {asked[apart[0]]} (tie_word_embeddings), and the weights hold "
            "other numbers for each. Loaders differ in which they take. Put tie_word_embeddings false into config.json "
            f"where both are meant, or remove {apart[0]} from the weights."
        )


def _more(names: Collection[object], shown: int = 1) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""
