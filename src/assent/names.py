"""The name that was probably meant, for messages about one that is not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

ALIASES = {
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "gradient_clipping": "max_grad_norm",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
    "eval_steps": "eval_every",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "num_threads": "threads",
    "output_dir": "out",
    "run_folder": "out",
    "resume_from_checkpoint": "resume",
    "model_name_or_path": "model.path",
    "reward_model": "rewards.model",
    "reward_function": "rewards.functions",
    "dataset": "data.train",
    "train_file": "data.train",
    "eval_dataset": "data.eval",
    "max_seq_length": "max_length",
    "max_completion_length": "max_new_tokens",
    "num_generations": "responses",
    "num_mini_batches": "minibatches",
    "kl_coef": "kl.coef",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "load_in_4bit": "quantize",
}
"""What other tools, and people, call an option -> the end of its name here."""
CUTOFF = 0.6
"""Least likeness, from 0 to 1, at which a name is suggested."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: one with the same last part, else the one that is spelt most alike, here or in
    `ALIASES`, with its section or without."""
    known, last = list(names), _last(name)
    same = [other for other in known if _last(other) == last]
    if same:
        return max(same, key=lambda other: _likeness(name, other))
    scores = {other: max(_scores(name, other)) for other in known}
    best = max(scores, key=lambda other: scores[other], default=None)
    return best if best is not None and scores[best] >= CUTOFF else None


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The sentence that goes after "unknown option"; empty where nothing is near."""
    near = nearest(name, names)
    return f" Perhaps you meant '{prefix}{near}'." if near else ""


def _scores(name: str, other: str) -> Iterator[float]:
    yield _likeness(name, other)
    yield _likeness(_last(name), _last(other))
    section = other.rpartition(".")[0]
    for alias, end in ALIASES.items():
        if f".{other}".endswith(f".{end}"):
            yield _likeness(_last(name), alias)
            yield _likeness(name, f"{section}.{alias}")


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _last(name: str) -> str:
    return name.rpartition(".")[2]
