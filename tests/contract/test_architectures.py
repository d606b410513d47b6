"""Every decoder type of the installed transformers: trained and sampled exactly, or refused in words; never silently
wrong. And what docs/models.md says of each is what is found."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import warnings
from pathlib import Path

import pytest
import transformers

warnings.filterwarnings("ignore", module="transformers")

spec = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
architectures = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = architectures
spec.loader.exec_module(architectures)

TABLE = json.loads(architectures.TABLE.read_text(encoding="utf-8"))
SLOW = {"phi4_multimodal", "roc_bert", "gemma3", "gemma4", "gemma4_unified"}
"""A large embedding or vision tower that nothing shrinks, or recurrence in Python."""


def cases() -> list:
    tried = (kind for kind in architectures.TYPES if kind not in architectures.UNBUILT)
    return [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in tried]


@pytest.mark.parametrize("kind", cases())
def test_exact_or_refused(kind: str, tmp_path: Path) -> None:
    found = architectures.measured(kind, tmp_path)
    assert all(len(text) > 2 for text in (found.trained, found.shared or "...", found.sampled or "..."))
    if transformers.__version__ == TABLE["transformers"]:
        assert dataclasses.asdict(found) == TABLE["types"][kind], "run: python tests/contract/architectures.py"


def test_the_table_knows_every_type() -> None:
    if transformers.__version__ == TABLE["transformers"]:
        assert list(TABLE["types"]) == list(architectures.TYPES)


@pytest.mark.parametrize(
    "kind",
    "llama mistral qwen2 qwen3 qwen3_moe gemma gemma3_text phi phi3 olmo olmo2 smollm3 glm4 starcoder2 gpt2 gpt_neox "
    "granite cohere2 deepseek_v2 deepseek_v3 minicpm3 youtu phimoe seed_oss opt hyperclovax exaone4 ernie4_5".split(),
)
def test_what_must_stay_whole(kind: str) -> None:
    """Prompts shared, trained and sampled."""
    row = TABLE["types"][kind]
    assert (row["trained"], row["shared"], row["sampled"]) == ("yes", "yes", "yes")


@pytest.mark.parametrize("kind", ["diffllama", "hrm_text", "doge", "roberta"])
def test_engines_that_would_be_wrong_are_refused(kind: str) -> None:
    row = TABLE["types"][kind]
    assert row["trained"] == "yes" and "off the model's own" in row["sampled"]
