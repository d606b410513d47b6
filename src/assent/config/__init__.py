"""Every option of assent, as frozen dataclasses. This package imports nothing heavy: `assent sft --help` reads only it.

A YAML file gives values, the command line overrides them, `resolved.yaml` in the run folder records the result.
"""

from __future__ import annotations

from assent.config.runs import (
    BinaryConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    PairConfig,
    PreferenceConfig,
    ProbeConfig,
    ReferenceConfig,
    RewardConfig,
    RewardSection,
    RunConfig,
    SFTConfig,
    TrainConfig,
)
from assent.config.sampling import EngineConfig, SamplingConfig
from assent.config.tools import (
    CompareConfig,
    DemoConfig,
    EnvConfig,
    ExportConfig,
    GenerateConfig,
    InitConfig,
    InspectConfig,
    ReportConfig,
)

__all__ = [
    "BinaryConfig",
    "CompareConfig",
    "DataConfig",
    "DemoConfig",
    "EngineConfig",
    "EnvConfig",
    "ExportConfig",
    "GenerateConfig",
    "InitConfig",
    "InspectConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "PairConfig",
    "PreferenceConfig",
    "ProbeConfig",
    "ReferenceConfig",
    "ReportConfig",
    "RewardConfig",
    "RewardSection",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "TrainConfig",
]
