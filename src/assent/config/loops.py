"""Options that every loop has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from assent.config.base import DataConfig, ModelConfig, OptimConfig, TrainConfig
from assent.config.ranges import Count, Named
from assent.config.sampling import EngineConfig, SamplingConfig
from assent.config.sections import Sections


@dataclass(frozen=True)
class LoopConfig(Sections):
    """Rounds of other commands in one folder: base of the loops' options. `optim` and `train` are those of each
    training run."""

    model: ModelConfig
    data: DataConfig
    out: Named
    """Folder of the loop: its state, and all that its rounds make."""
    rounds: Count = 3
    """How often."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of what is trained, for example loss.beta:0.1 or kl.coef:0.05."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resume: Literal["auto"] | None = None
    """auto goes on with the loop that is in `out`, or starts."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers of the training runs, besides their metrics.jsonl."""
