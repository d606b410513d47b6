"""assent teaches a language model what people prefer. The public names below are imported when first used, so that
`import assent` itself costs nothing."""

from __future__ import annotations

import importlib

from assent import cpus

__version__ = "0.1.0"

PUBLIC = {
    "assent.algorithms.merge": ("merge",),
    "assent.algorithms.preference.train": ("train_preference",),
    "assent.algorithms.online.train": ("train_online",),
    "assent.algorithms.reward.attributes": ("train_attributes",),
    "assent.algorithms.reward.ensemble": ("train_ensemble",),
    "assent.algorithms.reward.odin": ("train_reward_odin",),
    "assent.algorithms.reward.pairs": ("train_reward",),
    "assent.algorithms.reward.ranking": ("train_reward_ranking",),
    "assent.algorithms.sft": ("train_sft",),
    "assent.config": (
        "AttributesConfig",
        "AttributesSection",
        "CheckConfig",
        "CompareConfig",
        "CriticConfig",
        "CurriculumConfig",
        "CustomConfig",
        "DataConfig",
        "DemoConfig",
        "EnsembleConfig",
        "GenerateConfig",
        "GivenConfig",
        "InitConfig",
        "InspectConfig",
        "KLConfig",
        "LoraConfig",
        "MergeConfig",
        "ModelConfig",
        "OptimConfig",
        "PtxConfig",
        "RemoteConfig",
        "ReportConfig",
        "RewardConfig",
        "RewardOdinConfig",
        "RewardRankingConfig",
        "RewardSection",
        "RewardsConfig",
        "RolloutConfig",
        "SFTConfig",
        "SamplingConfig",
        "ScoreConfig",
        "ShapingConfig",
        "TrainConfig",
        "WarpConfig",
        "WatchConfig",
        "online_config",
        "preference_config",
    ),
    "assent.data.inspect": ("inspect_file",),
    "assent.errors": (
        "AssentError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "ModelError",
        "NonFiniteError",
        "OutputError",
        "RunFolderError",
        "UserError",
    ),
    "assent.evaluate.compare": ("compare",),
    "assent.evaluate.report": ("write_report",),
    "assent.evaluate.score": ("score",),
    "assent.evaluate.watch": ("watch",),
    "assent.lab.check": ("check",),
    "assent.loops.warp": ("warp",),
    "assent.lab.demo": ("run_demo",),
    "assent.models.init": ("init_model",),
    "assent.rollout.chat": ("generate",),
}
"""Module -> the names it gives to the package."""

cpus.configure()

_HOME = {name: module for module, names in PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'assent' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
