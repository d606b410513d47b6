"""Tiny random models of every decoder type that the installed transformers knows (its own configuration class, with
small sizes wherever a field is named like a size), and what assent makes of each. Run as a program, it writes what it
found to docs/models.json: `PYTHONPATH=src python tests/contract/architectures.py`, then `make docs`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from assent.config import ModelConfig, SamplingConfig
from assent.data.tree import Branch, TokenTree, collate
from assent.errors import ModelError
from assent.models.loading import load_policy, quiet_transformers
from assent.models.policy import Policy
from assent.rollout.check import check_sampling
from assent.rollout.torch_engine import TorchEngine

TABLE = Path(__file__).parents[2] / "docs" / "models.json"
VOCAB = 120
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

SIZES: dict[int, str] = {
    32: "hidden_size n_embd d_model dim hidden_dim word_embed_proj_dim embedding_size model_dim dim_model lru_width "
    "emb_dim attention_hidden_size block_hidden_size token_embed_dim",
    64: "mamba_d_ssm d_inner",
    48: "intermediate_size ffn_dim n_inner ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size "
    "d_ff dim_ff decoder_ffn_dim encoder_ffn_dim moe_ffn_hidden_size intermediate_size_mlp expert_ffn_hidden_size "
    "shared_intermediate_size feed_forward_size ffn_intermediate_size dense_intermediate_size "
    "moe_shared_expert_intermediate_size expert_hidden_size block_ff_dim",
    2: "num_key_value_heads num_kv_heads n_kv_heads num_experts_per_tok num_experts_per_token moe_topk top_k_experts "
    "linear_num_key_heads num_encoder_layers encoder_layers swa_num_key_value_heads num_hidden_layers n_layer "
    "num_layers n_layers decoder_layers n_layers moe_top_k topk moe_k num_selected_experts index_topk_heads "
    "kv_n_heads num_global_key_value_heads num_decoder_layers",
    4: "num_attention_heads n_head num_heads n_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts mamba_n_heads linear_num_value_heads moe_num_experts index_n_heads "
    "swa_num_attention_heads mamba_num_heads zero_expert_num num_query_heads attention_heads mamba_dt_rank "
    "mamba_n_heads vocab_size_per_layer_heads ffn_num_experts encoder_n_heads",
    8: "head_dim qk_nope_head_dim v_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim state_size "
    "mamba_d_state ssm_state_size global_head_dim index_head_dim swa_head_dim hidden_size_per_layer_input "
    "kv_channels attention_head_dim moe_latent_size",
    16: "q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim chunk_size mamba_chunk_size laurel_rank adapter_mamba "
    "mamba_headdim time_step_rank low_rank o_lora_rank index_topk",
    1: "n_group topk_group n_groups mamba_n_groups num_shared_experts n_shared_experts mamba_ngroups "
    "first_k_dense_replace moe_layer_start_index ssm_n_groups",
    VOCAB: "vocab_size n_vocab vocab_size_per_layer_input",
    256: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length context_length "
    "max_target_positions",
    0: "num_mtp_layers num_nextn_predict_layers mtp_num_layers",
}
SIZE = {name: size for size, names in SIZES.items() for name in names.split()}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1, "sep_token_id": 2}

NOISE = re.compile(r"drop(?!_)|jitter")
"""Rates of chance: switched on."""
LOGITS = re.compile(r"logit|lm_head")
"""Factors: made to matter."""

PER_TYPE: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "diffllama": {"attention_dropout": 0.0},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_hidden_layers": 6, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4, "num_experts": 8, "num_experts_per_token": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields that no rule gives."""

UNBUILT = {
    "blt": "its smallest model takes too long to build",
    "cohere_compass_text": "its default configuration has no rotary parameters",
    "dbrx": "its default configuration cannot be read by its code",
    "dots3_note": "its default configuration names layers by number",
    "fuyu": "its smallest model takes too long to build",
    "gemma3n": "needs the package timm",
    "gemma4_assistant": "a drafting model for another",
    "gemma4_unified_assistant": "a drafting model for another",
    "got_ocr2": "its smallest model takes too long to build",
    "moshi": "a model of sound",
    "moss_transcribe_diarize": "a model of sound",
    "musicgen": "a model of sound",
    "musicgen_melody": "a model of sound",
    "zamba": "its sizes depend on each other in ways that no rule gives",
    "zamba2": "its sizes depend on each other in ways that no rule gives",
}
"""Types that are not tried, and why."""


def shrunk(config_class: type[PreTrainedConfig], **fields: Any) -> PreTrainedConfig:
    """The configuration that a class has by default, with small sizes."""
    names = {field.name for field in dataclasses.fields(config_class)}
    attribute_map = getattr(config_class, "attribute_map", {})
    own = {name: value for name, value in {**SIZE, **IDS}.items() if name in names and name not in attribute_map}
    for field in dataclasses.fields(config_class):
        default = field.default
        if NOISE.search(field.name) and isinstance(default, float) and field.name not in attribute_map:
            own[field.name] = 0.3
        elif default == 1.0 and isinstance(default, float) and LOGITS.search(field.name):
            own[field.name] = 0.6
    if "is_decoder" in names:
        own["is_decoder"] = True
    if "kv_lora_rank" in names:  # latent attention: every head has its own keys
        own["num_key_value_heads"] = own["num_attention_heads"]
    for name, sub in (config_class.sub_configs or {}).items():
        if name in names and isinstance(sub, type) and issubclass(sub, PreTrainedConfig) and sub is not AutoConfig:
            own[name] = shrunk(sub).to_dict()
    return config_class(**{**own, **fields})


def tiny_config(kind: str) -> PreTrainedConfig:
    config_class = type(AutoConfig.for_model(kind))
    return shrunk(config_class, **PER_TYPE.get(kind, {}))


def write(kind: str, folder: Path, seed: int = 0) -> None:
    """A folder of a model of this type, in fp32, with weights that are large enough for everything to matter."""
    config = tiny_config(kind)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.normal_(0.0, 0.15) if weight.ndim >= 2 else weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder)
    if type(model.config) is not type(config) or config.is_encoder_decoder:
        config.save_pretrained(folder)  # as a published folder has it


@dataclasses.dataclass(frozen=True)
class Found:
    """What becomes of a type: "yes", or why not."""

    trained: str
    shared: str
    sampled: str
    reward: bool
    """Whether transformers has a class for its reward model."""


def measured(kind: str, folder: Path) -> Found:
    """Writes a tiny model of this type into `folder`, trains and samples from it. AssertionError where a number is
    wrong; whatever is refused must be refused by a ModelError."""
    write(kind, folder)
    reward = kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            policy = load_policy(ModelConfig(str(folder), precision="fp32"), max_length=64)
    except ModelError as error:
        return Found(_reason(error, folder), "", "", reward)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with contextlib.suppress(ValueError):
        own.set_attn_implementation("eager")
    check_training(policy, own)
    _, _, why = told.getvalue().rpartition("prompts are not shared, because ")
    shared = "yes" if policy.tree else _reason(why.partition("\n")[0], folder)
    try:
        check_sampling(policy.model, 64)
    except ModelError as error:
        return Found("yes", shared, _reason(error, folder), reward)
    check_samples(policy, own)
    return Found("yes", shared, "yes", reward)


def logits(own: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return own(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].double()


def check_training(policy: Policy, own: PreTrainedModel) -> None:
    """In training mode, twice: log-probs and entropies as of the model's own logits; and gradients are numbers."""
    rng = np.random.default_rng(5)
    prompt, *answers = (rng.integers(3, VOCAB, size) for size in (7, 5, 8, 3))
    tree = TokenTree(prompt, tuple(Branch(ids, np.ones(len(ids), bool)) for ids in answers))
    want = []
    for ids in answers:
        logp = torch.log_softmax(logits(own, np.concatenate([prompt, ids]))[len(prompt) - 1 : -1], -1)
        picked = logp.gather(1, torch.from_numpy(ids)[:, None])[:, 0]
        want.append(torch.stack([picked, -(logp.exp() * logp).sum(-1)], 1))
    assert policy.model.training
    batch = collate([tree], flat=not policy.tree)
    for _ in range(2):
        scores = policy(batch, entropy=True)
        got = torch.stack([scores.logprobs, scores.entropy], 1)
        torch.testing.assert_close(got.double(), torch.cat(want), atol=2e-4, rtol=0)
    got.sum().backward()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


def check_samples(policy: Policy, own: PreTrainedModel) -> None:
    """The log-probs that the engine reports are those of the model's own logits, at the temperature."""
    rng = np.random.default_rng(6)
    prompts = [rng.integers(3, VOCAB, size) for size in (4, 9)]
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.7, max_batch=3)
    for prompt, drawn in zip(prompts, TorchEngine(policy.model, ()).generate(prompts, 2, sampling, 1), strict=True):
        for answer in drawn:
            own_logits = logits(own, np.concatenate([prompt, answer.ids]))[len(prompt) - 1 : -1]
            logp = torch.log_softmax(own_logits / 0.7, -1).gather(1, torch.from_numpy(answer.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.from_numpy(answer.logprobs).double(), logp, atol=2e-4, rtol=0)


def _reason(text: object, folder: Path) -> str:
    words = str(text).replace(str(folder), "the folder")
    return re.sub(r"[\d.]+(e-?\d+)? (nats|of their)", r"some \2", words).strip()


def main() -> None:
    """Measures every type, or those that are named and keeps what was found of the others."""
    torch.set_num_threads(1)
    quiet_transformers()
    named = sys.argv[1:]
    before = json.loads(TABLE.read_text(encoding="utf-8"))["types"] if named else {}
    rows: dict[str, Any] = {}
    for kind in TYPES:
        if named and kind not in named:
            rows[kind] = before[kind]
            continue
        print(kind, file=sys.stderr, flush=True)
        if kind in UNBUILT:
            rows[kind] = {"untried": UNBUILT[kind]}
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[kind] = dataclasses.asdict(measured(kind, Path(folder)))
    out = {"transformers": transformers.__version__, "types": rows}
    TABLE.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
