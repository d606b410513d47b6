"""Embeddings of prompts: hidden states averaged over the tokens, alone or among others, of encoders and decoders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from assent.errors import ModelError
from assent.people.curate.embed import Embedder

TEXTS = ("What is the capital of France?", "Name three colours.", "Boil", "How do I boil an egg? " * 30)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tokenizer, tmp_path_factory) -> Path:
    """A small random BERT with that tokenizer, saved as a masked language model: without a pooler."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **size
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_vectors_are_means_of_hidden_states(kind: str, encoder: Path, tiny_model_dir: Path):
    path = encoder if kind == "encoder" else tiny_model_dir
    model, words = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    limit = 64 if kind == "encoder" else 512
    found = Embedder(str(path), CPU, "--topics.model", "fp32", False).vectors(TEXTS)
    assert found.shape == (4, 32)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([words(text)["input_ids"][:limit]])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=2e-5)


def test_what_a_model_does_not_read_is_said(encoder: Path, caplog):
    Embedder(str(encoder), CPU, "--topics.model", "fp32", False).vectors(TEXTS)
    assert "1 of 4 prompts are read up to their first 64 tokens" in caplog.text


def test_weights_that_are_not_there_are_refused(encoder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(encoder, tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    weights = load_file(file)
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="--topics.model .* it lacks weights .*layer.1.attention.self.query.weight"):
        Embedder(str(tmp_path / "bert"), CPU, "--topics.model", "fp32", False)
