"""What TRL, LLaMA-Factory, OpenRLHF and verl call an option, and what it is called here: one table, for messages.

Only names are translated, never values. Flags of TRL 1.16 (and of its PPO trainer, up to 0.24) with those of
transformers, of LLaMA-Factory 0.9, of OpenRLHF 0.10 (dotted) and before, keys of verl 0.5, and of ArmoRM's scripts what
they say of a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple


class Row(NamedTuple):
    """Names elsewhere; our option, or, in order of preference, several of which a command has one (none: there is no
    counterpart); and what must be known about it."""

    theirs: str
    ours: str
    note: str = ""


WHOLE_STEP = "all examples of one optimiser step (online: all prompts of one rollout), over all ranks and accumulation"
ONE_LIMIT = "one limit on prompt and response together; --data.long says what becomes of longer prompts"
STAGE = "the command says it, as in assent sft, assent reward or assent dpo"
METHOD = "the command says it, as in assent ppo, assent grpo or assent rloo"
ADAPTERS = "a rank above 0 trains adapters, 0 all weights"
PACKED = "batches are always packed, and no example sees another"
RANKS = "start several processes with torchrun; the model is sharded over them"

ROWS: tuple[Row, ...] = (
    # the model
    Row(
        "model_name_or_path pretrain actor.model_name_or_path "
        "actor_rollout_ref.model.path model.partial_pretrain",
        "model.path model",
    ),
    Row("model_revision", "model.revision"),
    Row("template chat_template_path", "model.chat_template chat_template", "default: the tokenizer's own"),
    Row("chat_template_kwargs", "model.template_kwargs template_kwargs"),
    Row(
        "bf16 fp16 pure_bf16 torch_dtype dtype infer_dtype ds.param_dtype", "model.precision precision",
        "auto, bf16 or fp32",
    ),
    Row(
        "gradient_checkpointing actor.gradient_checkpointing_enable model.enable_gradient_checkpointing "
        "actor_rollout_ref.model.enable_gradient_checkpointing", "model.activation_checkpointing",
        "a switch without a value",
    ),
    Row("actor_rollout_ref.model.trust_remote_code", "model.trust_remote_code trust_remote_code"),
    Row("use_peft finetuning_type", "model.lora.rank", ADAPTERS),
    Row("lora_r lora_rank ds.lora.rank actor_rollout_ref.model.lora_rank model.lora_rank", "model.lora.rank", ADAPTERS),
    Row("lora_alpha ds.lora.alpha actor_rollout_ref.model.lora_alpha model.lora_alpha", "model.lora.alpha"),
    Row(
        "lora_target_modules lora_target target_modules ds.lora.target_modules model.target_modules "
        "actor_rollout_ref.model.target_modules",
        "model.lora.targets",
    ),
    Row("load_in_4bit load_in_8bit quantization_bit ds.lora.load_in_4bit", "model.lora.quantize", "none, nf4 or int8"),
    Row("lora_dropout ds.lora.dropout disable_dropout", "", "nothing is dropped out in training"),
    Row(
        "attn_implementation flash_attn ds.attn_implementation padding_free packing neat_packing packing_samples "
        "ds.packing_samples use_remove_padding actor_rollout_ref.model.use_remove_padding",
        "", PACKED,
    ),
    # the data
    Row(
        "dataset_name dataset train_dataset train_file prompt_data data.prompt_dataset data.dataset data.train_files",
        "data.train data file prompts",
        "a file, folder or hub id",
    ),
    Row("eval_dataset eval_file eval.dataset data.eval_dataset data.val_files", "data.eval"),
    Row("val_size test_split_size", "data.eval_fraction"),
    Row("dataset_train_split dataset_split prompt_split data.dataset_split data.prompt_split", "data.split split"),
    Row("dataset_test_split eval_split eval.split", "", "--data.eval names held-out rows of their own"),
    Row("max_samples data.max_samples data.train_max_samples", "data.limit limit"),
    Row(
        "input_key label_key prompt_key chosen_key rejected_key data.input_key data.label_key data.prompt_key "
        "data.chosen_key data.rejected_key data.response_key dataset_text_field",
        "data.columns columns", "EXPECTED:FOUND pairs",
    ),
    Row(
        "max_completion_length max_new_tokens response_length generate_max_len "
        "rollout.max_new_tokens data.max_response_length",
        "sampling.max_new_tokens",
    ),
    Row(
        "max_length max_seq_length max_prompt_length max_completion_length cutoff_len max_len prompt_max_len "
        "data.max_len data.max_prompt_length data.max_response_length",
        "data.max_length max_length limits.tokens", ONE_LIMIT,
    ),
    Row("truncation_mode data.truncation", "data.long long"),
    Row("mask_history", "data.turns turns", "last"),
    Row(
        "assistant_only_loss completion_only_loss train_on_prompt", "",
        "only answers are trained; --data.turns says which of their turns",
    ),
    Row("apply_chat_template data.apply_chat_template", "", "it always is; --data.rendered reads text as it stands"),
    Row("preprocessing_num_workers dataset_num_proc dataloader_num_workers overwrite_cache", "", "none is needed"),
    # what earlier versions called otherwise
    Row("harness", "results", "it reads RewardBench's, too"),
    Row("objectives", "methods", "NAME=METHOD, or a method: of any command that trains a policy"),
    # the optimiser
    Row(
        "learning_rate actor_learning_rate actor.adam.lr adam.lr actor_rollout_ref.actor.optim.lr",
        "optim.lr",
    ),
    Row(
        "lr_scheduler_type lr_scheduler actor.lr_scheduler actor_rollout_ref.actor.optim.lr_scheduler_type "
        "optim.lr_scheduler",
        "optim.schedule",
    ),
    Row(
        "warmup_ratio warmup_steps lr_warmup_ratio lr_warmup_steps actor.lr_warmup_ratio optim.warmup_steps_ratio "
        "optim.lr_warmup_steps_ratio actor_rollout_ref.actor.optim.lr_warmup_steps "
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio",
        "optim.warmup", "a share of all steps",
    ),
    Row("min_lr_ratio actor.min_lr_ratio lr_scheduler_kwargs", "optim.min_lr", "a share of --optim.lr"),
    Row(
        "weight_decay l2 adam_weight_decay actor.adam.weight_decay actor_rollout_ref.actor.optim.weight_decay",
        "optim.weight_decay",
    ),
    Row(
        "max_grad_norm max_norm gradient_clipping actor.max_norm actor_rollout_ref.actor.grad_clip "
        "actor_rollout_ref.actor.optim.clip_grad optim.clip_grad",
        "optim.max_grad_norm",
    ),
    Row("adam_beta1 adam_betas actor.adam.betas optim.betas actor_rollout_ref.actor.optim.betas", "optim.beta1",
        "and --optim.beta2"),
    Row("adam_beta2", "optim.beta2"),
    Row("adam_epsilon actor.adam.eps", "optim.eps"),
    Row("optim", "", "AdamW is the one optimiser, with --optim.lr, --optim.beta1 and further options"),
    # the loop
    Row(
        "train_batch_size actor_rollout_ref.actor.ppo_mini_batch_size", "rollout.minibatches",
        "into how many steps the --train.batch_size prompts of a rollout are split",
    ),
    Row(
        "per_device_train_batch_size train_batch_size rollout_batch_size rollout.batch_size data.train_batch_size "
        "generation_batch_size",
        "train.batch_size", WHOLE_STEP,
    ),
    Row(
        "gradient_accumulation_steps", "",
        "--train.batch_size is the whole step, which --train.micro_tokens splits to fit into memory",
    ),
    Row(
        "micro_train_batch_size micro_rollout_batch_size train.micro_batch_size rollout.micro_batch_size "
        "per_device_eval_batch_size train_max_tokens_per_gpu train.max_tokens_per_gpu data.micro_batch_size_per_gpu "
        "auto_find_batch_size actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu "
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
        "train.micro_tokens", "tokens in one forward pass; it never changes the result",
    ),
    Row("num_train_epochs num_episodes train.num_episodes trainer.total_epochs", "train.epochs"),
    Row("total_episodes trainer.total_training_steps", "train.max_steps", "optimiser steps"),
    Row("max_steps", "train.max_steps"),
    Row("seed data_seed full_determinism trainer.seed", "train.seed seed"),
    Row("eval_steps eval_strategy eval.steps evaluation_strategy trainer.test_freq", "train.eval_every", "in steps"),
    Row("save_steps save_strategy ckpt.save_steps trainer.save_freq", "train.save_every", "in steps"),
    Row("save_total_limit max_ckpt_num ckpt.max_num trainer.max_actor_ckpt_to_keep", "train.keep"),
    Row("load_best_model_at_end", "train.final", "last or best"),
    Row("logging_steps logger.logging_steps", "train.log_every"),
    Row("output_dir save_path ckpt_path ckpt.output_dir ckpt.path trainer.default_local_dir", "out"),
    Row("overwrite_output_dir", "", "a run folder is never overwritten; take another --out, or --resume auto"),
    Row(
        "resume_from_checkpoint load_checkpoint ckpt.load_enable trainer.resume_mode", "resume", "auto, or a checkpoint"
    ),
    Row(
        "report_to use_wandb use_tensorboard logger.wandb.key logger.tensorboard_dir trainer.logger", "report_to",
        "tensorboard, wandb or trackio",
    ),
    Row(
        "deepspeed fsdp fsdp_config zero_stage ds.zero_stage ddp_timeout adam_offload ref_offload "
        "actor_num_nodes actor_num_gpus_per_node trainer.n_gpus_per_node trainer.nnodes "
        "actor_rollout_ref.actor.strategy actor_rollout_ref.rollout.tensor_model_parallel_size",
        "", RANKS,
    ),
    Row("push_to_hub hub_model_id", "", "the folder model/ can be uploaded as it is"),
    # which method
    Row("stage do_train", "", STAGE),
    Row("do_eval do_predict", "", "--data.eval or --data.eval_fraction holds rows out"),
    Row("pref_loss loss_type ipo", "", "the command says it, as in assent dpo, assent simpo or assent kto"),
    Row(
        "advantage_estimator algo.advantage.estimator algorithm.adv_estimator policy_loss_type "
        "importance_sampling_level actor_rollout_ref.actor.policy_loss.loss_mode",
        "", METHOD,
    ),
    # losses on feedback
    Row("pref_beta beta", "loss.beta kl.coef"),
    Row("label_smoothing dpo_label_smoothing", "loss.label_smoothing reward.label_smoothing"),
    Row("center_rewards_coefficient", "reward.centring"),
    Row("multi_objective_dataset", "gate.ratings", "a file, folder or hub id"),
    Row("verbosity_dim", "gate.verbosity", "an output's name"),
    Row("corr_threshold", "gate.limit"),
    Row("n_hidden", "gate.layers"),
    Row("logit_scale", "gate.scale"),
    Row("simpo_gamma", "loss.gamma"),
    Row("cpo_alpha", "loss.sft_weight"),
    Row("cpo_alpha rpo_alpha pref_ftx nll_loss_coef", "plus", "for example --plus sft:0.2"),
    Row("desirable_weight kto_chosen_weight", "loss.desirable_weight"),
    Row("undesirable_weight kto_rejected_weight", "loss.undesirable_weight"),
    Row("ld_alpha", "loss.tail_weight"),
    Row("f_divergence_type", "loss.divergence"),
    Row("f_alpha_divergence_coef", "loss.divergence_alpha"),
    Row("discopop_tau", "loss.temperature"),
    Row("ref_model ref_pretrain ref.model_name_or_path ref_model_name_or_path", "reference.path kl.reference"),
    Row("precompute_ref_log_probs", "reference.mode", "cached"),
    Row("sync_ref_model", "reference.mode", "moving"),
    Row("sync_ref_model", "kl.anchor", "ema"),
    Row("ref_model_mixup_alpha", "reference.rate kl.anchor_rate"),
    Row("ref_model_sync_steps", "reference.every"),
    # rewards of sampled answers
    Row(
        "reward_model reward_model_path reward_model_name_or_path reward_pretrain reward.model_name_or_path "
        "reward_model.model.path reward.reward_model.model_path",
        "rewards.model reward_model",
    ),
    Row(
        "reward_funcs reward_function custom_reward_function.path reward.custom_reward_function.path agent_func_path "
        "train.agent_func_path",
        "rewards.functions scorer", "FILE.py:function",
    ),
    Row("remote_rm_url reward.remote_url reward_model_type", "rewards.servers", "SHAPE=URL, or --rewards.functions"),
    Row("served_model_name", "name"),
    Row("import", "load"),
    Row("database_url", "db"),
    Row("api_key", "key_env remote.key_env", "the name of an environment variable that holds the key"),
    Row("max_model_len", "limits.tokens data.max_length"),
    Row("max_num_batched_tokens", "micro_tokens train.micro_tokens"),
    Row("reward_weights", "rewards.weights"),
    Row(
        "num_generations n_samples_per_prompt rollout.n_samples_per_prompt actor_rollout_ref.rollout.n",
        "rollout.responses",
    ),
    Row(
        "num_iterations num_ppo_epochs ppo_epochs max_epochs train.max_epochs actor_rollout_ref.actor.ppo_epochs",
        "rollout.epochs train.epochs",
    ),
    Row("steps_per_generation num_mini_batches ppo_buffer_size", "rollout.minibatches"),
    Row(
        "kl_coef init_kl_coef algo.kl.init_coef algorithm.kl_ctrl.kl_coef actor_rollout_ref.actor.kl_loss_coef",
        "kl.coef",
    ),
    Row(
        "use_kl_loss algo.kl.use_loss actor_rollout_ref.actor.use_kl_loss algorithm.use_kl_in_reward", "kl.place",
        "reward or loss",
    ),
    Row(
        "kl_estimator algo.kl.estimator actor_rollout_ref.actor.kl_loss_type algorithm.kl_penalty", "kl.estimator",
        "k1, k2, k3 or full",
    ),
    Row("kl_target ppo_target algo.kl.target algorithm.kl_ctrl.target_kl", "kl.target"),
    Row("teacher_model_name_or_path", "distill.teacher", "of the policy's tokenizer"),
    Row("lmbda", "distill.on_policy", "share of the prompts that the policy answers"),
    Row("seq_kd", "", "sample the teacher's answers (assent generate) and train on them: assent sft, or assent gkd "
        "--distill.on_policy 0"),
    Row("kl_horizon algo.kl.horizon algorithm.kl_ctrl.horizon", "kl.horizon"),
    Row(
        "epsilon cliprange eps_clip actor.eps_clip actor_rollout_ref.actor.clip_ratio "
        "actor_rollout_ref.actor.clip_ratio_low",
        "loss.clip",
    ),
    Row("eps_clip_low_high actor.eps_clip_low_high", "loss.clip", "and --loss.clip_high"),
    Row("epsilon_high actor_rollout_ref.actor.clip_ratio_high", "loss.clip_high"),
    Row("delta dual_clip actor.dual_clip actor_rollout_ref.actor.clip_ratio_c", "loss.dual_clip"),
    Row("scale_rewards algorithm.norm_adv_by_std_in_grpo no_advantage_std_norm", "loss.scale", "group, batch or none"),
    Row("normalize_advantages", "loss.whiten"),
    Row("loss_agg_mode actor_rollout_ref.actor.loss_agg_mode", "loss.reduction", "token, response or fixed"),
    Row("entropy_coef entropy_loss_coef actor.entropy_coef actor_rollout_ref.actor.entropy_coeff", "loss.entropy"),
    Row("gamma algo.advantage.gamma algorithm.gamma", "loss.gamma"),
    Row("lam lambd gae_lambda algo.advantage.lambd algorithm.lam", "loss.lam"),
    Row(
        "dynamic_filtering algo.dynamic_filtering_enable algorithm.filter_groups.enable", "loss.dynamic",
        "a switch without a value, of assent dapo",
    ),
    Row("critic_learning_rate critic.adam.lr critic.optim.lr", "critic.lr"),
    Row("critic_pretrain critic.model_name_or_path critic.model.path", "critic.start"),
    Row("value_clip cliprange_value critic.value_clip critic.cliprange_value", "critic.clip"),
    Row("vf_coef", "critic.coef"),
    Row("freezing_actor_steps critic.freezing_steps actor.freezing_steps trainer.critic_warmup", "critic.warmup",
        "in rollouts"),
    Row("ptx_coef actor.ptx_coef", "ptx.coef"),
    Row("pretrain_data", "ptx.data"),
    Row("normalize_reward ppo_score_norm whiten_rewards reward.normalize_enable", "shaping.normalise",
        "none, running or batch"),
    Row("reward_clip_range reward.clip_range", "shaping.clip", "one bound, of the absolute value"),
    Row("missing_eos_penalty", "shaping.missing_eos_penalty"),
    # pairs of sampled answers (TRL's Online DPO, XPO and Nash-MD)
    Row("mixture_coef", "loss.mixture"),
    Row("judge", "rewards.judges", "openai=URL or model=FOLDER"),
    Row("mask_truncated_completions", "", "--shaping.missing_eos_penalty lowers the reward of an unfinished answer"),
    Row("overlong_buffer_len reward.overlong_buffer_len", "shaping.overlong", "a share of the longest length"),
    Row("temperature rollout.temperature actor_rollout_ref.rollout.temperature", "sampling.temperature"),
    Row("top_p rollout.top_p actor_rollout_ref.rollout.top_p", "sampling.top_p"),
    Row("top_k rollout.top_k actor_rollout_ref.rollout.top_k", "sampling.top_k"),
    Row("use_vllm infer_backend vllm_num_engines vllm.num_engines actor_rollout_ref.rollout.name", "engine.name",
        "torch or vllm"),
    Row("vllm_server_base_url vllm_server_host", "engine.url", "http://HOST:PORT"),
    Row(
        "vllm_gpu_memory_utilization vllm.gpu_memory_utilization actor_rollout_ref.rollout.gpu_memory_utilization",
        "engine.memory",
    ),
    Row("log_completions num_completions_to_print", "rollout.show"),
)  # fmt: skip

NAMES: dict[str, list[Row]] = {}
"""Each name elsewhere -> the rows that it stands in."""
for _row in ROWS:
    for _name in _row.theirs.split():
        NAMES.setdefault(_name, []).append(_row)


def counterpart(
    name: str, known: Collection[str], shown: str, here: str, written: Callable[[str], str] = "--{}".format
) -> str | None:
    """One sentence on what another tool's option `name` is here, where `known` are the options of `here`; None where no
    tool has it. `shown` is how it was given, `written` how a name of ours is."""
    rows = NAMES.get(name)
    if rows is None:
        return None
    ours = [(option, row.note) for row in rows for option in row.ours.split()]
    for option, note in ours:
        if option in known:
            return f"{shown} is {written(option)} in assent{note and ': '}{note}."
    if not ours:
        return f"{shown} has no counterpart in assent: {rows[0].note}."
    if any(option.rpartition(".")[2] == name for option in known):
        return None  # here the word means something else
    return f"{shown} is {written(ours[0][0])} in assent, which {here} does not have."
