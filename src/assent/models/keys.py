"""Whether the weights of a folder are those that its configuration asks for."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from assent.errors import ModelError

HARMLESS = re.compile(r"rotary_emb\.inv_freq$|attn\.(masked_)?bias$|position_ids$")
"""Surplus that says nothing: buffers that older versions stored."""
TOLD = re.compile(r"vis(ion|ual)|audio|image|projector|(^|\.)mtp|v_head|nextn")
"""Parts that are left behind and said: towers for pictures and sound, heads that predict further tokens or values."""


def check_keys(
    folder: str, missing: Collection[str], surplus: Collection[str], mismatched: Collection[Any], *, headless: str
) -> None:
    """Raises ModelError where weights are missing, of another shape, or left over, unless what is left over is known to
    do no harm; parts that are left behind are said. `headless` is the task: a classifier replaces the output head."""
    if mismatched:
        name, stored, wanted = min(mismatched, key=lambda found: found[0])
        raise ModelError(
            f"{folder}: {name} has the shape {tuple(stored)}, but config.json asks for {tuple(wanted)}"
            f"{_more(mismatched)}. The configuration belongs to other weights."
        )
    if headless == "CAUSAL_LM" and any(name.startswith("score.") for name in surplus):
        raise ModelError(f"{folder} is a reward model's folder (it has score.weight), not a causal language model's.")
    if missing:
        what = "causal language model" if headless == "CAUSAL_LM" else "reward model"
        shown = ", ".join(sorted(missing)[:3])
        raise ModelError(f"{folder} is not a {what}'s folder: it lacks {shown}{_more(missing, 3)}.")
    told = {name for name in surplus if TOLD.search(name)}
    unknown = sorted(name for name in surplus if name not in told and not HARMLESS.search(name))
    if headless != "CAUSAL_LM":
        unknown = [name for name in unknown if not re.match(r"(lm_head|embed_out|output|cls|head)\.", name)]
    if unknown:
        raise ModelError(
            f"{folder}: its weights hold {', '.join(unknown[:3])}{_more(unknown, 3)}, for which config.json has no "
            "place (are there as many layers as it says?). Loaded like this, a part of the model would be missing."
        )
    if told:
        parts = sorted({".".join(name.split(".")[:2]) for name in told})
        print(f"{folder}: not loaded, and not in what is saved: {', '.join(parts[:4])} ({len(told)} weights)")


def _more(names: Collection[object], shown: int = 1) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""
