"""Options of `assent merge`, and the table of its methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from assent.config.ranges import Finite, Named, Names, NonzeroShare, Seed
from assent.config.sections import Sections

MergeName = Literal["linear", "ema", "liti", "slerp", "karcher", "task-arithmetic", "ties", "dare", "dare-ties"]
Granularity = Literal["layer", "tensor", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeMethod:
    """`formula` in the symbols of docs/merging.md; `base` whether it merges task vectors, differences from a base;
    `options` are those that only some methods have; `models` how many are merged: at least, and at most."""

    name: str
    formula: str
    paper: str
    use: str
    base: bool = True
    options: tuple[str, ...] = ()
    models: tuple[int, int | None] = (2, None)

    @property
    def linear(self) -> bool:
        """Whether the merged weights are one weighted sum of the models' weights, the same in every tensor."""
        return not {"granularity", "density"} & set(self.options)


MERGES: dict[MergeName, MergeMethod] = {
    "linear": MergeMethod(
        name="linear average (LERP, model soup)",
        formula="Σ w_i θ_i / Σ w_i; with `--no_normalize` Σ w_i θ_i",
        paper="2203.05482",
        use="Runs of one start that differ in data order, seed or rates (reward models too).",
        base=False,
        options=("weights", "normalize"),
        models=(1, None),
    ),
    "ema": MergeMethod(
        name="exponential moving average of checkpoints, oldest first",
        formula="a ← (1 − μ) a + μ θ_i for i = 2 … M, from a = θ_1",
        paper="1703.01780",
        use="Checkpoints of one run, smoothed.",
        base=False,
        options=("mu",),
    ),
    "liti": MergeMethod(
        name="LITI, linear interpolation towards the start",
        formula="θ_0 + η δ_1 = (1 − η) θ_0 + η θ_1",
        paper="2406.16768",
        use="A trained model that went too far: reward and KL between it and its start.",
        options=("eta",),
        models=(1, 1),
    ),
    "slerp": MergeMethod(
        name="SLERP of task vectors (WARP), of more than two one after the other",
        formula="θ_0 + η s_M, s_1 = δ_1, s_i = sin((1 − λ)Ω)/sin Ω s_{i−1} + sin(λΩ)/sin Ω δ_i, "
        "λ = w_i / (w_1 + … + w_i), Ω the angle of s_{i−1} and δ_i",
        paper="2406.16768",
        use="Policies of separate runs, two at a time or a few: more reward than their mean.",
        options=("weights", "granularity", "eta"),
    ),
    "karcher": MergeMethod(
        name="Karcher mean of task vectors, in no order",
        formula="θ_0 + η (Σ w_i |δ_i|) m, m the unit vector with the least Σ w_i angle(m, δ_i)²",
        paper="2603.04972",
        use="The same of more than two, whatever their order.",
        options=("weights", "granularity", "eta"),
    ),
    "task-arithmetic": MergeMethod(
        name="task arithmetic",
        formula="θ_0 + η Σ w_i δ_i",
        paper="2212.04089",
        use="Different skills added, or one taken away by a weight below 0.",
        options=("weights", "eta"),
        models=(1, None),
    ),
    "ties": MergeMethod(
        name="TIES",
        formula="θ_0 + η Σ w_i t_i [sign t_i = s] / Σ w_i [sign t_i = s], t_i the largest `--density` of δ_i, "
        "s = sign Σ w_i t_i",
        paper="2306.01708",
        use="Different skills whose changes get in each other's way.",
        options=("weights", "density", "eta"),
        models=(1, None),
    ),
    "dare": MergeMethod(
        name="DARE",
        formula="θ_0 + η Σ w_i d_i, d_i = δ_i / `--density` where a coin with that chance falls so, else 0",
        paper="2311.03099",
        use="Models after SFT alone, whose changes are small and redundant.",
        options=("weights", "density", "seed", "eta"),
        models=(1, None),
    ),
    "dare-ties": MergeMethod(
        name="DARE with the signs of TIES",
        formula="as ties, t_i = d_i of dare",
        paper="2311.03099",
        use="The same of several models.",
        options=("weights", "density", "seed", "eta"),
        models=(1, None),
    ),
}
"""Method -> its row. θ_0 is the base, θ_i a model, δ_i = θ_i − θ_0 its task vector, w_i its weight."""


@dataclass(frozen=True)
class MergeConfig(Sections):
    """One model of several of the same shape, by their weights; memory stays that of a part of one tensor."""

    models: Names
    """Model folders, runs, checkpoints, adapter folders or hub ids; for ema the oldest first."""
    method: MergeName
    """How: linear, ema, liti, slerp, karcher, task-arithmetic, ties, dare or dare-ties (docs/merging.md)."""
    out: Named
    """Model folder to write."""
    base: Named | None = None
    """The model that all began from, which task vectors are differences from; default: what all models are laid
    on, where they are adapters or checkpoints."""
    weights: tuple[float, ...] = ()
    """A weight for each model, in their order; default: all 1. For slerp of two, λ is the second's share."""
    normalize: bool = True
    """linear: divide by the sum of the weights."""
    granularity: Granularity | None = None
    """slerp, karcher: one angle for each layer (the default, as in WARP), for each tensor, or for the whole model."""
    eta: Finite | None = None
    """With a base: what the merged task vector is multiplied by (default 1): η of WARP's LITI, the scaling of task
    arithmetic and TIES."""
    mu: NonzeroShare | None = None
    """ema: weight of each further model, μ."""
    density: NonzeroShare | None = None
    """ties, dare, dare-ties: share of each task vector that is kept: the largest (0.2 in the paper of TIES), or drawn
    (0.1 in that of DARE)."""
    seed: Seed | None = None
    """dare, dare-ties: seed of what is drawn (default 0)."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the weights; auto: that of the first model."""
    adapters: Literal["auto", "keep", "merge"] = "auto"
    """Where all models are adapters on one base: keep writes merged adapters, for methods that are weighted sums, with
    the sum of their ranks; merge writes a whole model; auto keeps them where that is exact."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model."""
