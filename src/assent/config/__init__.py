"""Every option of assent, as frozen dataclasses, each with its range beside it. This package imports nothing heavy:
`assent sft --help` reads only it.

A YAML file gives values, the command line overrides them, `resolved.yaml` in the run folder records the result.
"""

# ruff: noqa: I001
# fmt: off

from __future__ import annotations

from assent.config.apo import ApoConfig
from assent.config.base import (
    AlarmConfig, DataConfig, LoraConfig, LossConfig, MeasuresConfig, ModelConfig, OptimConfig, PolicyRunConfig,
    ProbeConfig, RunConfig, SFTConfig, TrainConfig,
)
from assent.config.choosing import ChooseConfig
from assent.config.distill import DistillConfig, GKDDistill
from assent.config.evaluation import EvalConfig, EvalJudgeConfig
from assent.config.iterate import IterateConfig, LabelsConfig, RefreshConfig
from assent.config.judge import EndpointConfig, JudgeConfig, VerdictConfig, WriterConfig
from assent.config.label import LabelConfig
from assent.config.merge import MERGES, MergeConfig, MergeMethod
from assent.config.methods import METHODS, Method, has_reference, method_of, objective_key, online_config
from assent.config.objectives import OBJECTIVES, Objective, objective_of, preference_config
from assent.config.online import (
    ActorCriticConfig, CriticConfig, CurriculumConfig, GivenConfig, KLConfig, OnlineConfig, PatienceConfig,
    PtxConfig, RemoteConfig, RewardsConfig, RolloutConfig, ShapingConfig, critic_of,
)
from assent.config.online_preference import (
    NashMDConfig, NashMDKL, NashMDLoss, OnlineDPOConfig, OnlineDPOLoss, OnlineKTOConfig, OnlineKTOLoss,
    OnlineSimPOConfig, OnlineSimPOLoss, PairRollout, XPOConfig, XPOLoss,
)
from assent.config.pairs import (
    AOTConfig, AOTLoss, AOTUnpairedConfig, AOTUnpairedLoss, APODownConfig, APOZeroConfig, AsymmetricDPOConfig,
    AsymmetricDPOLoss, CDPOConfig, CDPOLoss, CPOConfig, CPOLoss, DPOConfig, DPOPConfig, DPOPLoss, DiscoPOPConfig,
    DiscoPOPLoss, EXOConfig, EXOLoss, FDPOConfig, FDPOLoss, HingeConfig, IPOConfig, IPOLoss, LDDPOConfig, LDDPOLoss,
    LNDPOConfig, LNDPOLoss, MovingReference, ODPOConfig, ODPOLoss, ORPOConfig, ORPOLoss, RDPOConfig, RDPOLoss,
    RPOConfig, RPOLoss, RRHFConfig, RRHFLoss, ReferenceFreeDPOConfig, RobustDPOConfig, RobustDPOLoss, SLiCHFConfig,
    SLiCHFLoss, SPPOConfig, SPPOLoss, SimPOConfig, SimPOLoss, TDPOConfig, TDPOLoss, TRDPOConfig, WPOConfig, WPOLoss,
)
from assent.config.people import (
    AggregateConfig, AgreeConfig, ContrastConfig, ContrastSampling, CritiqueConfig, FeedbackFileConfig,
    JudgeFileConfig,
)
from assent.config.policy_gradient import (
    CISPOConfig, CISPOLoss, DAPOConfig, DAPOLoss, DAPOShaping, DrGRPOConfig, DrGRPOLoss, GKDConfig, GKDLoss,
    GRPOConfig, GRPOKL, GRPOLoss, GSPOConfig, GSPOLoss, GSPORollout, GroupRollout, NoKL, PPOConfig, PPOLoss, PPORollout,
    REINFORCEConfig, REINFORCELoss, REINFORCEPlusPlusBaselineConfig, REINFORCEPlusPlusBaselineKL,
    REINFORCEPlusPlusBaselineLoss, REINFORCEPlusPlusConfig, REINFORCEPlusPlusKL, REINFORCEPlusPlusLoss, RLOOConfig,
    RLOOLoss, RLOORollout, ReMaxConfig, ReMaxLoss,
)
from assent.config.preference import (
    APOZeroUnpairedConfig, BCOConfig, BetaLoss, BinaryConfig, CustomConfig, InfoNCAConfig, InfoNCALoss, KTOConfig,
    KTOLoss, ListConfig, NCAConfig, NCALoss, PairConfig, PlackettLuceDPOConfig, PreferenceConfig, ReferenceConfig,
    ReferencePairConfig, loss_of, reference_of,
)
from assent.config.reward import (
    AdversarialSection, AttributesConfig, AttributesSection, EnsembleConfig, EnsembleSection, GateSection,
    OdinSection, OldRewardSection, REWARD_MODELS, RankingSection, RewardConfig, RewardGateConfig, RewardModel,
    RewardModelConfig, RewardOdinConfig, RewardRankingConfig, RewardSection, reward_model_of,
)
from assent.config.rlaif import ConstitutionConfig, PrincipleJudge, RLAIFConfig, RLCDConfig
from assent.config.sampling import EngineConfig, SamplingConfig
from assent.config.scoring import ScoreConfig, ScoredFileConfig, SourceConfig
from assent.config.sections import keywords
from assent.config.serve import LimitsConfig, ServeConfig
from assent.config.steerlm import SteerLMConfig, SteeringConfig
from assent.config.tools import (
    CheckConfig, CompareConfig, DemoConfig, EnvConfig, ExportConfig, GenerateConfig, InitConfig, InspectConfig,
    ReportConfig, WatchConfig,
)
from assent.config.training import TRAINERS, Trainer, named_methods
from assent.config.trust import TrustConfig
from assent.config.warp import WarpConfig

__all__ = [
    "AOTConfig", "AOTLoss", "AOTUnpairedConfig", "AOTUnpairedLoss", "APODownConfig", "APOZeroConfig",
    "APOZeroUnpairedConfig", "ActorCriticConfig", "AdversarialSection", "AggregateConfig", "AgreeConfig",
    "AlarmConfig", "ApoConfig", "AsymmetricDPOConfig", "AsymmetricDPOLoss", "AttributesConfig", "AttributesSection",
    "BCOConfig", "BetaLoss", "BinaryConfig", "CDPOConfig", "CDPOLoss", "CISPOConfig", "CISPOLoss", "CPOConfig",
    "CPOLoss", "CheckConfig", "ChooseConfig", "CompareConfig", "ConstitutionConfig", "ContrastConfig",
    "ContrastSampling", "CriticConfig", "CritiqueConfig", "CurriculumConfig", "CustomConfig", "DAPOConfig",
    "DAPOLoss", "DAPOShaping", "DPOConfig", "DPOPConfig", "DPOPLoss", "DataConfig", "DemoConfig", "DiscoPOPConfig",
    "DiscoPOPLoss", "DistillConfig", "DrGRPOConfig", "DrGRPOLoss", "EXOConfig", "EXOLoss", "EndpointConfig",
    "EngineConfig",
    "EnsembleConfig", "EnsembleSection", "EnvConfig", "EvalConfig", "EvalJudgeConfig", "ExportConfig", "FDPOConfig",
    "FDPOLoss", "FeedbackFileConfig", "GKDConfig", "GKDDistill", "GKDLoss", "GRPOConfig", "GRPOKL", "GRPOLoss",
    "GSPOConfig", "GSPOLoss", "GSPORollout",
    "GateSection", "GenerateConfig", "GivenConfig", "GroupRollout", "HingeConfig", "IPOConfig", "IPOLoss",
    "InfoNCAConfig", "InfoNCALoss", "InitConfig", "InspectConfig", "IterateConfig", "JudgeConfig",
    "JudgeFileConfig", "KLConfig", "KTOConfig", "KTOLoss", "LDDPOConfig", "LDDPOLoss", "LNDPOConfig", "LNDPOLoss",
    "LabelConfig",
    "LabelsConfig", "LimitsConfig", "ListConfig", "LoraConfig", "LossConfig", "MERGES", "METHODS", "MeasuresConfig",
    "MergeConfig", "MergeMethod", "Method", "ModelConfig", "MovingReference", "NCAConfig", "NCALoss",
    "NashMDConfig", "NashMDKL", "NashMDLoss", "NoKL", "OBJECTIVES", "ODPOConfig", "ODPOLoss", "ORPOConfig",
    "ORPOLoss", "Objective", "OdinSection", "OldRewardSection", "OnlineConfig", "OnlineDPOConfig", "OnlineDPOLoss",
    "OnlineKTOConfig", "OnlineKTOLoss", "OnlineSimPOConfig", "OnlineSimPOLoss", "OptimConfig", "PPOConfig",
    "PPOLoss", "PPORollout", "PairConfig", "PairRollout", "PatienceConfig", "PlackettLuceDPOConfig",
    "PolicyRunConfig", "PreferenceConfig", "PrincipleJudge", "ProbeConfig", "PtxConfig", "RDPOConfig", "RDPOLoss",
    "REINFORCEConfig", "REINFORCELoss", "REINFORCEPlusPlusBaselineConfig", "REINFORCEPlusPlusBaselineKL",
    "REINFORCEPlusPlusBaselineLoss", "REINFORCEPlusPlusConfig", "REINFORCEPlusPlusKL", "REINFORCEPlusPlusLoss",
    "REWARD_MODELS", "RLAIFConfig", "RLCDConfig", "RLOOConfig", "RLOOLoss", "RLOORollout", "RPOConfig", "RPOLoss",
    "RRHFConfig", "RRHFLoss", "RankingSection", "ReMaxConfig", "ReMaxLoss", "ReferenceConfig",
    "ReferenceFreeDPOConfig", "ReferencePairConfig", "RefreshConfig", "RemoteConfig", "ReportConfig",
    "RewardConfig", "RewardGateConfig", "RewardModel", "RewardModelConfig", "RewardOdinConfig",
    "RewardRankingConfig", "RewardSection", "RewardsConfig", "RobustDPOConfig", "RobustDPOLoss", "RolloutConfig",
    "RunConfig", "SFTConfig", "SLiCHFConfig", "SLiCHFLoss", "SPPOConfig", "SPPOLoss", "SamplingConfig",
    "ScoreConfig", "ScoredFileConfig", "ServeConfig", "ShapingConfig", "SimPOConfig", "SimPOLoss", "SourceConfig",
    "SteerLMConfig", "SteeringConfig", "TDPOConfig", "TDPOLoss", "TRAINERS", "TRDPOConfig", "TrainConfig",
    "Trainer", "TrustConfig", "VerdictConfig", "WPOConfig", "WPOLoss", "WarpConfig", "WatchConfig", "WriterConfig",
    "XPOConfig", "XPOLoss", "critic_of", "has_reference", "keywords", "loss_of", "method_of", "named_methods",
    "objective_key", "objective_of", "online_config", "preference_config", "reference_of", "reward_model_of",
]
