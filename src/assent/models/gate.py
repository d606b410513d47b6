"""A gate over the outputs of a reward model: which of them matter is read off the prompt (ArmoRM, arXiv 2406.12845).

    share_j = r_j (g M')_j,   reward = sum_j share_j = sum_k g_k (r M)_k,   g = softmax(mlp(x) / temperature) * scale

with the K outputs r of an answer, the hidden state x of its prompt, and a fixed matrix M [K, K] that takes verbosity
out of the other outputs. The gate lies in a folder of its own inside the model's, since vLLM reads every safetensors
file beside config.json as the model's weights; `config.json` says the rest, in its section `assent_gate`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from assent.data.tree import TreeBatch
from assent.errors import ModelError
from assent.foreign import brief
from assent.models.sources import Source
from assent.models.stored import folder_of, weight_files

SECTION = "assent_gate"
FILE = Path("gate", "gate.safetensors")
LAST = "the prompt's last token"


@dataclass(frozen=True, slots=True)
class GateRule:
    """What config.json says of a gate.

    hidden       widths of its hidden layers
    temperature  what its logits are divided by
    transform    M, row by row
    verbosity    the output that M takes out of the others; None: M takes out nothing
    pattern      the prompt's state is read where these token ids begin for the last time in prompt and answer; without
                 any, at the prompt's last token
    backbone     sha256 of the weights that the gate was trained on
    """

    hidden: tuple[int, ...]
    temperature: float
    transform: tuple[tuple[float, ...], ...]
    verbosity: str | None = None
    pattern: tuple[int, ...] = ()
    backbone: str = ""


class Gate(nn.Module):
    """A perceptron with ReLU whose outputs become K weights by a softmax, times a scale that is trained with it.
    Computed in fp32. `transform` is M, the identity until it is set."""

    transform: Tensor
    precision = "fp32"

    def __init__(
        self,
        width: int,
        outputs: int,
        hidden: Sequence[int] = (1024, 1024, 1024),
        *,
        temperature: float = 10.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [width, *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.logit_scale = nn.Parameter(torch.full((1,), scale))
        self.register_buffer("transform", torch.eye(outputs), persistent=False)
        self.temperature = temperature

    def forward(self, states: Tensor, kept: Tensor | None = None) -> Tensor:
        """[n, h] -> [n, K], each row sums to the scale. `kept` [n, units of all hidden layers] is what dropout
        multiplies them by."""
        *hidden, last = self.layers
        factors = repeat(1.0) if kept is None else kept.split([layer.out_features for layer in hidden], dim=1)
        x = states.float()
        for layer, factor in zip(hidden, factors, strict=False):
            x = F.relu(layer(x)) * factor
        return torch.softmax(last(x) / self.temperature, dim=-1) * self.logit_scale


def shares(outputs: Tensor, weights: Tensor, transform: Tensor) -> Tensor:
    """What each output adds to the reward: share_j = r_j (g M')_j, so that sum_j share_j = sum_k g_k (r M)_k.

    outputs    [S, K]  r
    weights    [S, K]  g
    transform  [K, K]  M

    Returns [S, K].
    """
    return outputs * (weights @ transform.T)


# ---- where prompts are read


def prompt_positions(batch: TreeBatch, pattern: Sequence[int] = ()) -> Tensor:
    """Where the state of each response's prompt is read: index into T, [S] int64. The prompt's last token, or the first
    token of the last occurrence of `pattern` in prompt and response. Raises ModelError where there is none."""
    spans = [(segment.start, segment.prompt_end, branch) for segment in batch.segments for branch in segment.branches]
    if not pattern:
        return torch.tensor([end - 1 for _, end, _ in spans], dtype=torch.int64, device=batch.tokens.device)
    tokens, wanted, found = batch.tokens.tolist(), list(pattern), []
    for start, end, (begin, stop) in spans:
        places = [*range(start, end), *range(begin, stop)]
        ids = [tokens[place] for place in places]
        tries = range(len(ids) - len(wanted), -1, -1)
        where = next((i for i in tries if ids[i : i + len(wanted)] == wanted), None)
        if where is None:
            raise ModelError(
                f"The gate reads its prompt where the tokens {wanted} begin, and a prompt with its answer has no such "
                "place. Give the chat template that the gate was trained with (--model.chat_template)."
            )
        found.append(places[where])
    return torch.tensor(found, dtype=torch.int64, device=batch.tokens.device)


# ---- folders


def weights_digest(folder: Path) -> str:
    """sha256 of all weights of a model folder: names, dtypes, shapes and numbers, however they are spread over
    files."""
    where = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as stored:
            where.update(dict.fromkeys(stored.keys(), file))
    digest = hashlib.sha256()
    for name in sorted(where):
        with safe_open(where[name], "pt") as stored:
            x = stored.get_tensor(name).contiguous()
        digest.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_gate(weights: Mapping[str, Tensor], rule: GateRule, folder: Path) -> GateRule:
    """Writes a gate's weights into a model folder that is otherwise complete. Gives its rule with the digest of the
    model's weights that lie there."""
    rule = replace(rule, backbone=weights_digest(folder))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[SECTION] = {**asdict(rule), "read_at": LAST if not rule.pattern else "where the pattern begins"}
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file({name: x.detach().float().cpu().contiguous() for name, x in weights.items()}, folder / FILE)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return rule


def stored_gate(model: PreTrainedModel, place: Source) -> tuple[Gate, GateRule] | None:
    """The gate that belongs to a model from this place, whose configuration then no longer speaks of it (`save_gate`
    writes it anew); None where it has none. Raises ModelError as `load_gate`, and where something is laid on the
    model."""
    section = getattr(model.config, SECTION, None)
    if section is None:
        return None
    delattr(model.config, SECTION)
    if place.layers:
        raise ModelError(
            f"{place.base} has a gate, and {place.layers[-1]} is laid on it: that is another backbone than the gate's. "
            "Train a gate for it: assent reward-gate"
        )
    folder = folder_of(place.base, place.revision)
    if not Path(place.base).is_dir():
        cached_file(place.base, str(FILE), revision=place.revision)
    outputs = model.config.num_labels
    return load_gate(folder, section, model.config.get_text_config().hidden_size, outputs)


def load_gate(folder: Path, section: Mapping[str, Any], width: int, outputs: int) -> tuple[Gate, GateRule]:
    """The gate of a folder whose config.json has `section`, for a model of hidden size `width` with so many outputs.
    Raises ModelError where either is damaged, or the gate was trained on other weights than the folder's."""
    try:
        rule = GateRule(
            hidden=tuple(int(size) for size in section["hidden"]),
            temperature=float(section["temperature"]),
            transform=tuple(tuple(float(x) for x in row) for row in section["transform"]),
            verbosity=section["verbosity"],
            pattern=tuple(int(token) for token in section["pattern"]),
            backbone=str(section["backbone"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: {SECTION} says nothing of a gate ({brief(error)}).") from error
    if not 0 < rule.temperature < math.inf or [len(row) for row in rule.transform] != [outputs] * outputs:
        raise ModelError(
            f"{folder / 'config.json'}: {SECTION} needs a temperature > 0 and a transform of {outputs} times {outputs} "
            f"numbers, one row for each output; got {rule.temperature:g} and {len(rule.transform)} rows."
        )
    try:
        weights = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / FILE}: not readable ({brief(error)}), but config.json has {SECTION}.") from error
    gate = filled(made(rule, width), weights, folder / FILE)
    if rule.backbone != weights_digest(folder):
        raise ModelError(
            f"{folder}: its gate was trained on another backbone (weights {rule.backbone[:12]}, here "
            f"{weights_digest(folder)[:12]}), so its weights mean nothing here. Train one for this folder: assent "
            f"reward-gate --model.path {folder} --data.train PAIRS --out RUN"
        )
    return gate, rule


def made(rule: GateRule, width: int, *, scale: float = 1.0) -> Gate:
    """A gate as the rule says, for states of size `width`, with random weights."""
    gate = Gate(width, len(rule.transform), rule.hidden, temperature=rule.temperature, scale=scale)
    gate.transform.copy_(torch.tensor(rule.transform))
    return gate


def filled(gate: Gate, weights: Mapping[str, Tensor], file: Path) -> Gate:
    """The gate with these weights, in evaluation mode. Raises ModelError where others are needed, or one is no finite
    number."""
    wanted = {name: x.shape for name, x in gate.state_dict().items()}
    if odd := sorted(wanted.items() ^ {name: x.shape for name, x in weights.items()}.items(), key=str):
        raise ModelError(f"{file}: its weights are not those of the gate in config.json ({odd[0][0]}).")
    for name, x in weights.items():
        if not x.isfinite().all():
            raise ModelError(f"{file}: {name} has numbers that are not finite.")
    gate.load_state_dict({name: x.float() for name, x in weights.items()})
    return gate.eval().requires_grad_(False)
