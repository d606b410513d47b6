"""The objectives that learn from feedback directly, without a reward model: one row each.

Commands, their options, docs/objectives.md and the tests are made from this table. A row names a pure function of
`assent.losses`; what that function needs (a reference, lengths, strengths, ...) stands in its signature. Nothing heavy
is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from assent import config as c
from assent.errors import ConfigError
from assent.names import suggestion
from assent.rules import BELOW_HALF, INSIDE, NOT_NEGATIVE, POSITIVE, SHARE
from assent.sections import Option, class_name, configuration, make_class, make_section, own_defaults

OPTIONS: dict[str, Option] = {
    "beta": Option(float, "Scale of the implicit reward. With a reference: smaller moves further from it.", POSITIVE),
    "beta_rejected": Option(float, "The same for the rejected answer.", POSITIVE),
    "label_smoothing": Option(float, "Share of the labels that are taken to be wrong.", BELOW_HALF),
    "length_normalised": Option(bool, "Divide log-probs by the answer's length."),
    "delta": Option(float, "Gap of log-probs that is asked for.", POSITIVE),
    "sft_weight": Option(float, "Weight of the chosen answer's negative log-likelihood.", NOT_NEGATIVE),
    "gamma": Option(float, "Gap of rewards that is asked for, in nats.", NOT_NEGATIVE),
    "penalty": Option(float, "Weight of the chosen answer's fall below the reference.", NOT_NEGATIVE),
    "length_penalty": Option(float, "Reward that one more token must earn to be worth it.", NOT_NEGATIVE),
    "tail_weight": Option(float, "Weight of the tokens beyond the shorter answer's length.", SHARE),
    "offset": Option(Literal["log", "linear"], "How a pair's strength becomes the gap that is asked for."),
    "offset_scale": Option(float, "Factor of that gap.", NOT_NEGATIVE),
    "divergence": Option(
        Literal["reverse_kl", "forward_kl", "js", "alpha"], "The divergence that holds the policy to the reference."
    ),
    "divergence_alpha": Option(float, "Of the alpha divergence.", INSIDE),
    "kl_weight": Option(float, "Weight of the sequence KL of rejected against chosen.", NOT_NEGATIVE),
    "odds_weight": Option(float, "Weight of the odds ratio beside the chosen answer's likelihood.", NOT_NEGATIVE),
    "temperature": Option(float, "How soft targets (NCA) or the blend of the two losses (DiscoPOP) are.", POSITIVE),
    "desirable_weight": Option(
        float | None, "Weight of desirable answers; default: 1, or more where they are the rarer class.", POSITIVE
    ),
    "undesirable_weight": Option(
        float | None, "Weight of undesirable answers; default: 1, or more where they are the rarer class.", POSITIVE
    ),
}

Feedback = Literal["pairs", "binary", "ranking", "rating"]
Reward = Literal["ratio", "ratio/length", "logprob", "logprob/length"]


@dataclass(frozen=True, slots=True)
class Objective:
    """`loss` names the function, `options` its keyword arguments with the paper's defaults. `reward` is the implicit
    reward that diagnostics use, times beta: log-ratio to the reference or plain log-prob, of the whole answer or per
    token. With `whole_step` the function sees all pairs of an optimiser step at once (it sorts them)."""

    name: str
    summary: str
    paper: str
    loss: str
    options: Mapping[str, Any]
    use: str
    feedback: Feedback = "pairs"
    reward: Reward = "ratio"
    whole_step: bool = False
    reference: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_reference(self) -> bool:
        return self.reward.startswith("ratio")

    @property
    def per_token(self) -> bool:
        """Whether the implicit reward is that of a token."""
        return self.reward.endswith("/length")


BETA = {"beta": 0.1}
OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(
        "DPO", "Bradley-Terry on log-ratios to the reference.", "2305.18290", "dpo", BETA,
        "The default. Watch the chosen answers' log-probs: both may fall.",
    ),
    "cdpo": Objective(
        "cDPO", "DPO that expects a share of wrong labels.", "2305.18290", "dpo", BETA | {"label_smoothing": 0.1},
        "Noisy labels, and to keep margins bounded.",
    ),
    "robust-dpo": Objective(
        "Robust DPO", "DPO made unbiased for a known share of flipped labels.", "2403.00409", "robust_dpo",
        BETA | {"label_smoothing": 0.1}, "Labels flipped at a rate that is known.",
    ),
    "ipo": Objective(
        "IPO", "Squared distance of the log-ratio gap from 1 / (2 beta).", "2310.12036", "ipo",
        BETA | {"length_normalised": False}, "Labels without noise, where DPO would push margins without end.",
    ),
    "hinge": Objective(
        "Hinge", "Hinge loss on DPO's margin.", "2309.06657", "hinge", BETA,
        "To stop pushing pairs that are told apart already.",
    ),
    "slic": Objective(
        "SLiC-HF", "Hinge on plain log-probs, with a likelihood term.", "2305.10425", "slic",
        {"delta": 1.0, "sft_weight": 0.1}, "Without a reference model, answers of similar length.", reward="logprob",
    ),
    "rrhf": Objective(
        "RRHF", "Ranking hinge on log-probs per token, with a likelihood term.", "2304.05302", "rrhf",
        {"sft_weight": 1.0}, "Ranked answers without a reference model.", reward="logprob/length",
    ),
    "cpo": Objective(
        "CPO", "DPO without reference, with a likelihood term.", "2401.08417", "cpo",
        BETA | {"sft_weight": 1.0, "label_smoothing": 0.0}, "No second model; good chosen answers.",
        reward="logprob",
    ),
    "orpo": Objective(
        "ORPO", "Likelihood of the chosen answer and the odds ratio of both.", "2403.07691", "orpo",
        {"odds_weight": 0.1}, "SFT and alignment in one run, from a base model.", reward="logprob/length",
    ),
    "simpo": Objective(
        "SimPO", "Log-probs per token with a target margin, no reference.", "2405.14734", "simpo",
        {"beta": 2.0, "gamma": 1.0, "length_normalised": True}, "Without a reference model, against length bias.",
        reward="logprob/length",
    ),
    "r-dpo": Objective(
        "R-DPO", "DPO with a price on length.", "2403.19159", "r_dpo", BETA | {"length_penalty": 0.01},
        "Preferences that favour long answers.",
    ),
    "ld-dpo": Objective(
        "LD-DPO", "DPO that counts tokens beyond the shorter answer's length less.", "2409.06411", "ld_dpo",
        BETA | {"tail_weight": 0.5}, "Answers that grow longer under DPO.",
    ),
    "ln-dpo": Objective(
        "LN-DPO", "DPO on log-ratios per token.", "2411.15124", "normalised_dpo", {"beta": 5.0},
        "Pairs of very unequal length.", reward="ratio/length",
    ),
    "dpop": Objective(
        "DPOP", "DPO that pays for chosen answers falling below the reference.", "2402.13228", "dpop",
        {"beta": 0.3, "penalty": 50.0}, "Pairs that differ in few tokens; when both log-probs fall.",
    ),
    "asymmetric-dpo": Objective(
        "Asymmetric DPO", "DPO with its own beta for the rejected answer.", "2305.18290", "asymmetric_dpo",
        {"beta": 0.6, "beta_rejected": 0.2}, "When both log-probs fall: rejected answers count less.",
    ),
    "rpo": Objective(
        "RPO", "DPO and the chosen answer's likelihood.", "2404.19733", "rpo", BETA | {"sft_weight": 1.0},
        "Reasoning, where chosen answers must stay likely.",
    ),
    "reference-free-dpo": Objective(
        "Reference-free DPO", "DPO with a uniform reference.", "2305.18290", "reference_free_dpo", BETA,
        "As a baseline; CPO or SimPO are better kept in hand.", reward="logprob",
    ),
    "odpo": Objective(
        "ODPO", "DPO that asks for a larger gap where the preference is stronger.", "2402.10571", "odpo",
        BETA | {"offset": "log", "offset_scale": 1.0}, "Pairs with strengths, or made from ratings.",
    ),
    "f-dpo": Objective(
        "f-DPO", "DPO under another divergence.", "2309.16240", "f_dpo",
        BETA | {"divergence": "js", "divergence_alpha": 0.5}, "To trade reward for diversity.",
    ),
    "tr-dpo": Objective(
        "TR-DPO", "DPO whose reference follows the policy.", "2404.09656", "dpo", BETA,
        "Long runs, where the first reference holds the policy back.", reference={"mode": "moving"},
    ),
    "tdpo": Objective(
        "TDPO", "DPO with the two answers' sequence KL.", "2404.11999", "tdpo", BETA | {"kl_weight": 0.5},
        "To keep KL and diversity in hand, token by token.",
    ),
    "wpo": Objective(
        "WPO", "DPO weighted by how likely the pair is under the policy.", "2406.11827", "wpo", {"beta": 0.01},
        "Pairs that other models have written.",
    ),
    "apo-zero": Objective(
        "APO-zero", "Raises the chosen and lowers the rejected answer.", "2408.06266", "apo_zero", BETA,
        "Chosen answers better than the model's own.",
    ),
    "apo-down": Objective(
        "APO-down", "Lowers both, the rejected answer more.", "2408.06266", "apo_down", BETA,
        "Chosen answers worse than the model's own.",
    ),
    "exo": Objective(
        "EXO", "Reverse KL from the labels' distribution.", "2402.00856", "exo", BETA | {"label_smoothing": 1e-3},
        "To seek the mode of the preferences instead of covering them.",
    ),
    "sppo": Objective(
        "SPPO", "Squared distance of each log-ratio from half its win.", "2405.00675", "sppo", {"beta": 0.001},
        "Pairs sampled from the policy itself, in rounds.",
    ),
    "aot": Objective(
        "AOT", "Asks the whole distribution of margins to exceed the reference's.", "2406.05882", "aot",
        BETA | {"label_smoothing": 0.0}, "Large batches.", whole_step=True,
    ),
    "aot-unpaired": Objective(
        "AOT unpaired", "Asks the distribution of chosen log-ratios to exceed that of rejected ones.", "2406.05882",
        "aot_unpaired", BETA | {"label_smoothing": 0.0}, "Large batches of answers that are no real pairs.",
        whole_step=True,
    ),
    "discopop": Objective(
        "DiscoPOP", "Blend of logistic and exponential loss, found by search.", "2406.08414", "discopop",
        {"beta": 0.05, "temperature": 0.05}, "To study other losses: this one pushes margins near 0 the wrong way.",
    ),
    "kto": Objective(
        "KTO", "Value of each answer against the policy's drift from the reference.", "2402.01306", "kto",
        BETA | {"desirable_weight": None, "undesirable_weight": None}, "Yes/no labels, also very unbalanced ones.",
        feedback="binary",
    ),
    "bco": Objective(
        "BCO", "Classifies answers by their log-ratio.", "2404.04656", "bco", BETA, "Yes/no labels.", feedback="binary",
    ),
    "apo-zero-unpaired": Objective(
        "APO-zero unpaired", "Raises desirable and lowers undesirable answers.", "2408.06266", "apo_zero_unpaired",
        BETA, "Yes/no labels, answers better than the model's own.", feedback="binary",
    ),
    "pl-dpo": Objective(
        "Plackett-Luce DPO", "Likelihood of a whole ranking.", "2305.18290", "plackett_luce", BETA,
        "Rankings of three or more answers.", feedback="ranking",
    ),
    "nca": Objective(
        "NCA", "Tells rated answers from noise, each on its own.", "2402.05369", "nca",
        {"beta": 0.01, "temperature": 1.0}, "Rated answers; keeps the best ones' likelihood from falling.",
        feedback="rating",
    ),
    "infonca": Objective(
        "InfoNCA", "Classifies the best among rated answers.", "2402.05369", "infonca",
        {"beta": 0.01, "temperature": 1.0}, "Rated answers; DPO with any number of them.", feedback="rating",
    ),
}  # fmt: skip

SFT = "sft"
"""What `plus` may add beside the pairwise objectives: the chosen answers' likelihood."""


def _config(key: str) -> type[c.PreferenceConfig]:
    row = OBJECTIVES[key]
    name = class_name(row.name)
    fields: list[tuple[str, Any, Any]] = [("loss", SECTIONS[key], field(default_factory=SECTIONS[key]))]
    if row.needs_reference:
        reference = own_defaults(c.ReferenceConfig, row.reference, f"{name}Reference", __name__)
        fields.append(("reference", reference, field(default_factory=reference)))
    base = {"pairs": c.PairConfig, "binary": c.BinaryConfig}.get(row.feedback, c.PreferenceConfig)
    doc = f"{row.name}: {row.summary.rstrip('.')} (arXiv {row.paper})."
    return make_class(f"{name}Config", fields, (base,), doc, __name__)


SECTIONS: dict[str, type] = {
    key: make_section(row.name, row.options, OPTIONS, __name__) for key, row in OBJECTIVES.items()
}
"""Options of each objective: the `loss` of its configuration."""
CONFIGS: dict[str, type[c.PreferenceConfig]] = {key: _config(key) for key in OBJECTIVES}
"""Configuration of each objective's command."""


def preference_config(objective: str, **options: Any) -> c.PreferenceConfig:
    """The configuration of an objective from Python. A section (`loss`, `reference`, ...) is given as a mapping of the
    options that differ from the objective's defaults, as in YAML; others keep them. Raises `ConfigError` for an
    objective or an option that does not exist.

    >>> config = preference_config(
    ...     "simpo", model={"path": "m"}, data={"train": "pairs.jsonl"}, out="runs/simpo", loss={"gamma": 0.5}
    ... )
    >>> config.loss.beta
    2.0
    """
    if objective not in CONFIGS:
        raise ConfigError(f"There is no objective '{objective}'.{suggestion(objective, CONFIGS)}")
    return configuration(CONFIGS[objective], options)


def objective_of(config: c.PreferenceConfig) -> str:
    """The key in `OBJECTIVES` that a configuration belongs to."""
    return next(key for key, cls in CONFIGS.items() if type(config) is cls)


def options_of(config: c.PreferenceConfig) -> dict[str, Any]:
    """The options of a configuration's own loss."""
    return vars(config.loss).copy()  # type: ignore[attr-defined]


def plus_of(config: c.PreferenceConfig) -> Mapping[str, float]:
    """The objectives that a configuration adds to its own, with their weights."""
    return config.plus if isinstance(config, c.PairConfig) else {}


def reference_of(config: c.PreferenceConfig) -> c.ReferenceConfig | None:
    """The section `reference`; None for an objective without one."""
    return getattr(config, "reference", None)
