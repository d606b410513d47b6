"""The objectives that learn from feedback directly, without a reward model: one row each.

Commands, docs/objectives.md and the tests are made from this table. A row names the class of its options and a pure
function of `assent.losses`; what that function needs (a reference, lengths, strengths, ...) stands in its signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from assent.config import pairs, preference
from assent.config.preference import CustomConfig, PreferenceConfig
from assent.config.sections import configuration, default_of, keywords
from assent.errors import ConfigError
from assent.names import suggestion

FeedbackKind = Literal["pairs", "binary", "ranking", "rating"]
ImplicitReward = Literal["ratio", "ratio/length", "logprob", "logprob/length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`loss` names the function, the section `loss` of `config` holds its keyword arguments with the paper's defaults.
    `reward` is the implicit reward that diagnostics use, times beta: log-ratio to the reference or plain log-prob, of
    the whole answer or per token. With `whole_step` the function sees all pairs of an optimiser step at once (it sorts
    them)."""

    name: str
    summary: str
    paper: str
    config: type[PreferenceConfig]
    loss: str
    use: str
    feedback: FeedbackKind = "pairs"
    reward: ImplicitReward = "ratio"
    whole_step: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its loss, with their defaults."""
        return keywords(default_of(self.config, "loss"))

    @property
    def needs_reference(self) -> bool:
        return self.reward.startswith("ratio")

    @property
    def per_token(self) -> bool:
        """Whether the implicit reward is that of a token."""
        return self.reward.endswith("/length")

    def as_trained(self, options: Mapping[str, Any]) -> Objective:
        """The same with the implicit reward that its loss has by these options: of a token where `length_normalised` is
        on, and of the whole answer where it is off."""
        if (on := options.get("length_normalised")) is None:
            return self
        whole = self.reward.removesuffix("/length")
        reward: Any = f"{whole}/length" if on else whole
        return replace(self, reward=reward)

    @property
    def reference_mode(self) -> str | None:
        """How its reference is had by default; None without one."""
        return default_of(self.config, "reference").mode if self.needs_reference else None


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(
        name="DPO", summary="Bradley-Terry on log-ratios to the reference.", paper="2305.18290", config=pairs.DPOConfig,
        loss="dpo", use="The default. Watch the chosen answers' log-probs: both may fall.",
    ),
    "cdpo": Objective(
        name="cDPO", summary="DPO that expects a share of wrong labels.", paper="2305.18290", config=pairs.CDPOConfig,
        loss="dpo", use="Noisy labels, and to keep margins bounded.",
    ),
    "robust-dpo": Objective(
        name="Robust DPO", summary="DPO made unbiased for a known share of flipped labels.", paper="2403.00409",
        config=pairs.RobustDPOConfig, loss="robust_dpo", use="Labels flipped at a rate that is known.",
    ),
    "ipo": Objective(
        name="IPO", summary="Squared distance of the log-ratio gap from 1 / (2 beta).", paper="2310.12036",
        config=pairs.IPOConfig, loss="ipo", use="Labels without noise, where DPO would push margins without end.",
    ),
    "hinge": Objective(
        name="Hinge", summary="Hinge loss on DPO's margin.", paper="2309.06657", config=pairs.HingeConfig, loss="hinge",
        use="To stop pushing pairs that are told apart already.",
    ),
    "slic": Objective(
        name="SLiC-HF", summary="Hinge on plain log-probs, with a likelihood term.", paper="2305.10425",
        config=pairs.SLiCHFConfig, loss="slic", reward="logprob",
        use="Without a reference model, answers of similar length.",
    ),
    "rrhf": Objective(
        name="RRHF", summary="Ranking hinge on log-probs per token, with a likelihood term.", paper="2304.05302",
        config=pairs.RRHFConfig, loss="rrhf", reward="logprob/length", use="Ranked answers without a reference model.",
    ),
    "cpo": Objective(
        name="CPO", summary="DPO without reference, with a likelihood term.", paper="2401.08417",
        config=pairs.CPOConfig, loss="cpo", reward="logprob", use="No second model; good chosen answers.",
    ),
    "orpo": Objective(
        name="ORPO", summary="Likelihood of the chosen answer and the odds ratio of both.", paper="2403.07691",
        config=pairs.ORPOConfig, loss="orpo", reward="logprob/length",
        use="SFT and alignment in one run, from a base model.",
    ),
    "simpo": Objective(
        name="SimPO", summary="Log-probs per token with a target margin, no reference.", paper="2405.14734",
        config=pairs.SimPOConfig, loss="simpo", reward="logprob/length",
        use="Without a reference model, against length bias.",
    ),
    "r-dpo": Objective(
        name="R-DPO", summary="DPO with a price on length.", paper="2403.19159", config=pairs.RDPOConfig, loss="r_dpo",
        use="Preferences that favour long answers.",
    ),
    "ld-dpo": Objective(
        name="LD-DPO", summary="DPO that counts tokens beyond the shorter answer's length less.", paper="2409.06411",
        config=pairs.LDDPOConfig, loss="ld_dpo", use="Answers that grow longer under DPO.",
    ),
    "ln-dpo": Objective(
        name="LN-DPO", summary="DPO on log-ratios per token.", paper="2411.15124", config=pairs.LNDPOConfig,
        loss="normalised_dpo", reward="ratio/length", use="Pairs of very unequal length.",
    ),
    "dpop": Objective(
        name="DPOP", summary="DPO that pays for chosen answers falling below the reference.", paper="2402.13228",
        config=pairs.DPOPConfig, loss="dpop", use="Pairs that differ in few tokens; when both log-probs fall.",
    ),
    "asymmetric-dpo": Objective(
        name="Asymmetric DPO", summary="DPO with its own beta for the rejected answer.", paper="2305.18290",
        config=pairs.AsymmetricDPOConfig, loss="asymmetric_dpo",
        use="When both log-probs fall: rejected answers count less.",
    ),
    "rpo": Objective(
        name="RPO", summary="DPO and the chosen answer's likelihood.", paper="2404.19733", config=pairs.RPOConfig,
        loss="rpo", use="Reasoning, where chosen answers must stay likely.",
    ),
    "reference-free-dpo": Objective(
        name="Reference-free DPO", summary="DPO with a uniform reference.", paper="2305.18290",
        config=pairs.ReferenceFreeDPOConfig, loss="reference_free_dpo", reward="logprob",
        use="As a baseline; CPO or SimPO are better kept in hand.",
    ),
    "odpo": Objective(
        name="ODPO", summary="DPO that asks for a larger gap where the preference is stronger.", paper="2402.10571",
        config=pairs.ODPOConfig, loss="odpo", use="Pairs with strengths, or made from ratings.",
    ),
    "f-dpo": Objective(
        name="f-DPO", summary="DPO under another divergence.", paper="2309.16240", config=pairs.FDPOConfig,
        loss="f_dpo", use="To trade reward for diversity.",
    ),
    "tr-dpo": Objective(
        name="TR-DPO", summary="DPO whose reference follows the policy.", paper="2404.09656", config=pairs.TRDPOConfig,
        loss="dpo", use="Long runs, where the first reference holds the policy back.",
    ),
    "tdpo": Objective(
        name="TDPO", summary="DPO with the two answers' sequence KL.", paper="2404.11999", config=pairs.TDPOConfig,
        loss="tdpo", use="To keep KL and diversity in hand, token by token.",
    ),
    "wpo": Objective(
        name="WPO", summary="DPO weighted by how likely the pair is under the policy.", paper="2406.11827",
        config=pairs.WPOConfig, loss="wpo", use="Pairs that other models have written.",
    ),
    "apo-zero": Objective(
        name="APO-zero", summary="Raises the chosen and lowers the rejected answer.", paper="2408.06266",
        config=pairs.APOZeroConfig, loss="apo_zero", use="Chosen answers better than the model's own.",
    ),
    "apo-down": Objective(
        name="APO-down", summary="Lowers both, the rejected answer more.", paper="2408.06266",
        config=pairs.APODownConfig, loss="apo_down", use="Chosen answers worse than the model's own.",
    ),
    "exo": Objective(
        name="EXO", summary="Reverse KL from the labels' distribution.", paper="2402.00856", config=pairs.EXOConfig,
        loss="exo", use="To seek the mode of the preferences instead of covering them.",
    ),
    "sppo": Objective(
        name="SPPO", summary="Squared distance of each log-ratio from half its win.", paper="2405.00675",
        config=pairs.SPPOConfig, loss="sppo", use="Pairs sampled from the policy itself, in rounds.",
    ),
    "aot": Objective(
        name="AOT", summary="Asks the whole distribution of margins to exceed the reference's.", paper="2406.05882",
        config=pairs.AOTConfig, loss="aot", whole_step=True, use="Large batches.",
    ),
    "aot-unpaired": Objective(
        name="AOT unpaired", summary="Asks the distribution of chosen log-ratios to exceed that of rejected ones.",
        paper="2406.05882", config=pairs.AOTUnpairedConfig, loss="aot_unpaired", whole_step=True,
        use="Large batches of answers that are no real pairs.",
    ),
    "discopop": Objective(
        name="DiscoPOP", summary="Blend of logistic and exponential loss, found by search.", paper="2406.08414",
        config=pairs.DiscoPOPConfig, loss="discopop",
        use="To study other losses: this one pushes margins near 0 the wrong way.",
    ),
    "kto": Objective(
        name="KTO", summary="Value of each answer against the policy's drift from the reference.", paper="2402.01306",
        config=preference.KTOConfig, loss="kto", feedback="binary", use="Yes/no labels, also very unbalanced ones.",
    ),
    "bco": Objective(
        name="BCO", summary="Classifies answers by their log-ratio.", paper="2404.04656", config=preference.BCOConfig,
        loss="bco", feedback="binary", use="Yes/no labels.",
    ),
    "apo-zero-unpaired": Objective(
        name="APO-zero unpaired", summary="Raises desirable and lowers undesirable answers.", paper="2408.06266",
        config=preference.APOZeroUnpairedConfig, loss="apo_zero_unpaired", feedback="binary",
        use="Yes/no labels, answers better than the model's own.",
    ),
    "pl-dpo": Objective(
        name="Plackett-Luce DPO", summary="Likelihood of a whole ranking.", paper="2305.18290",
        config=preference.PlackettLuceDPOConfig, loss="plackett_luce", feedback="ranking",
        use="Rankings of three or more answers.",
    ),
    "nca": Objective(
        name="NCA", summary="Tells rated answers from noise, each on its own.", paper="2402.05369",
        config=preference.NCAConfig, loss="nca", feedback="rating",
        use="Rated answers; keeps the best ones' likelihood from falling.",
    ),
    "infonca": Objective(
        name="InfoNCA", summary="Classifies the best among rated answers.", paper="2402.05369",
        config=preference.InfoNCAConfig, loss="infonca", feedback="rating",
        use="Rated answers; DPO with any number of them.",
    ),
}  # fmt: skip

CUSTOM = "custom"
"""The command of an objective of the user's own."""
SFT_TERM = "sft"
"""What `plus` may add beside the pairwise objectives: the chosen answers' likelihood."""


def preference_config(objective: str, **options: Any) -> PreferenceConfig:
    """The configuration of an objective from Python. A section (`loss`, `reference`, ...) is given as a mapping of the
    options that differ from the objective's defaults, as in YAML; others keep them. Raises `ConfigError` for an
    objective or an option that does not exist.

    >>> config = preference_config(
    ...     "simpo", model={"path": "m"}, data={"train": "pairs.jsonl"}, out="runs/simpo", loss={"gamma": 0.5}
    ... )
    >>> config.loss.beta
    2.0
    """
    if objective not in OBJECTIVES:
        raise ConfigError(f"There is no objective '{objective}'.{suggestion(objective, OBJECTIVES)}")
    return configuration(OBJECTIVES[objective].config, options)


def objective_of(config: PreferenceConfig) -> str:
    """The key in `OBJECTIVES` that a configuration belongs to, or `CUSTOM`."""
    if isinstance(config, CustomConfig):
        return CUSTOM
    return next(key for key, row in OBJECTIVES.items() if type(config) is row.config)
