"""Tiny random models of every decoder type that the installed transformers knows: its own configuration class with
small sizes wherever a field is named like a size."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_hidden_layers": 6, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 16]},
    "zamba": {"layer_types": ["mamba", "hybrid"]},
    "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields that no rule gives."""


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
    if "kv_lora_rank" in names:  # latent attention: every head has its own keys
        own["num_key_value_heads"] = own["num_attention_heads"]
    for name, sub in (config_class.sub_configs or {}).items():
        if name in names and isinstance(sub, type) and issubclass(sub, PreTrainedConfig) and sub is not AutoConfig:
            own[name] = shrunk(sub).to_dict()
    return config_class(**{**own, **fields})


def tiny_config(kind: str) -> PreTrainedConfig:
    config_class = type(AutoConfig.for_model(kind))
    return shrunk(config_class, **PER_TYPE.get(kind, {}))


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """A model of this type in fp32, whose weights are large enough for everything to matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.normal_(0.0, 0.15) if weight.ndim >= 2 else weight.add_(0.05 * torch.randn_like(weight))
    return model.eval()
