"""Flags of other tools: each is answered with ours, in a line of its own."""

from __future__ import annotations

import re
import shlex

import pytest

from assent import cli
from assent.config import settings
from assent.counterparts import NAMES, ROWS

OPTIONS = {name: [option.name for option in settings.options(row.config)] for name, row in cli.COMMANDS.items()}
EVERY = {option for names in OPTIONS.values() for option in names}


def told(words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert cli.main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ")
    return err.removeprefix("error: ").splitlines()


def test_every_target_is_an_option_and_every_row_says_something():
    for row in ROWS:
        assert row.ours or row.note, row.theirs
        assert set(row.ours.split()) <= EVERY, row
        for option in re.findall(r"--([\w.]+)", row.note):
            assert option in EVERY, row
        for command in re.findall(r"assent ([\w+-]+)", row.note):
            assert command in cli.COMMANDS, row
        assert not row.note.endswith("."), row


def test_no_name_stands_twice_in_a_row_or_where_ours_is_meant():
    for name, rows in NAMES.items():
        assert len(rows) == len({id(row) for row in rows}), name
        assert re.fullmatch(r"[a-z][a-z0-9_.]*", name), name
        assert "." not in name or name not in EVERY, name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "dpo --model_name_or_path m --dataset_name d --output_dir o --learning_rate 5e-7 "
            "--per_device_train_batch_size 2 --gradient_accumulation_steps 8 --gradient_checkpointing "
            "--num_train_epochs 1 --max_length 1024 --max_prompt_length 512 --eval_strategy steps --eval_steps 50 "
            "--logging_steps 25 --warmup_ratio 0.1 --lr_scheduler_type cosine --bf16 --use_peft --lora_r 32 "
            "--lora_alpha 16 --beta 0.1 --loss_type sigmoid --report_to wandb --seed 1 --max_grad_norm 1",
            [
                "--model_name_or_path is --model.path in assent.",
                "--dataset_name is --data.train in assent: a file, folder or hub id.",
                "--output_dir is --out in assent.",
                "--learning_rate is --optim.lr in assent.",
                "--per_device_train_batch_size is --train.batch_size in assent: all examples of one optimiser step "
                "(online: all prompts of one rollout), over all ranks and accumulation.",
                "--gradient_accumulation_steps has no counterpart in assent: --train.batch_size is the whole step, "
                "which --train.micro_tokens splits to fit into memory.",
                "--gradient_checkpointing is --model.activation_checkpointing in assent: a switch without a value.",
                "--num_train_epochs is --train.epochs in assent.",
                "--max_length is --data.max_length in assent: one limit on prompt and response together; --data.long "
                "says what becomes of longer prompts.",
                "--max_prompt_length is --data.max_length in assent: one limit on prompt and response together; "
                "--data.long says what becomes of longer prompts.",
                "--eval_strategy is --train.eval_every in assent: in steps.",
                "--eval_steps is --train.eval_every in assent: in steps.",
                "--logging_steps is --train.log_every in assent.",
                "--warmup_ratio is --optim.warmup in assent: a share of all steps.",
                "--lr_scheduler_type is --optim.schedule in assent.",
                "--bf16 is --model.precision in assent: auto, bf16 or fp32.",
                "--use_peft is --model.lora.rank in assent: a rank above 0 trains adapters, 0 all weights.",
                "--lora_r is --model.lora.rank in assent: a rank above 0 trains adapters, 0 all weights.",
                "--lora_alpha is --model.lora.alpha in assent.",
                "--beta is --loss.beta in assent.",
                "--loss_type has no counterpart in assent: the command says it, as in assent dpo, assent simpo or "
                "assent kto.",
                "--seed is --train.seed in assent.",
                "--max_grad_norm is --optim.max_grad_norm in assent.",
            ],
        ),
        (
            "grpo --num-generations 8 --max_completion_length 512 --beta 0.04 --reward_funcs f --epsilon 0.2 "
            "--use_vllm",
            [
                "--num-generations is --rollout.responses in assent.",
                "--max_completion_length is --sampling.max_new_tokens in assent.",
                "--beta is --kl.coef in assent.",
                "--reward_funcs is --rewards.functions in assent: FILE.py:function.",
                "--epsilon is --loss.clip in assent.",
                "--use_vllm is --engine.name in assent: torch or vllm.",
            ],
        ),
        (
            "sft --stage sft --finetuning_type lora --template llama3 --cutoff_len 2048 --val_size 0.1",
            [
                "--stage has no counterpart in assent: the command says it, as in assent sft, assent reward or "
                "assent dpo.",
                "--finetuning_type is --model.lora.rank in assent: a rank above 0 trains adapters, 0 all weights.",
                "--template is --model.chat_template in assent: default: the tokenizer's own.",
                "--cutoff_len is --data.max_length in assent: one limit on prompt and response together; --data.long "
                "says what becomes of longer prompts.",
                "--val_size is --data.eval_fraction in assent.",
            ],
        ),
        (
            "ppo --pretrain m --reward_pretrain r --train_batch_size 128 --rollout_batch_size 1024 --max_epochs 1 "
            "--n_samples_per_prompt 4 --prompt_max_len 1024 --generate_max_len 1024 --init_kl_coef 0.01 "
            "--actor_learning_rate 5e-7 --critic_learning_rate 9e-6 --eps_clip 0.2 --zero_stage 3",
            [
                "--pretrain is --model.path in assent.",
                "--reward_pretrain is --rewards.model in assent.",
                "--train_batch_size is --rollout.minibatches in assent: into how many steps the --train.batch_size "
                "prompts of a rollout are split.",
                "--rollout_batch_size is --train.batch_size in assent: all examples of one optimiser step (online: all "
                "prompts of one rollout), over all ranks and accumulation.",
                "--max_epochs is --rollout.epochs in assent.",
                "--n_samples_per_prompt is --rollout.responses in assent.",
                "--prompt_max_len is --data.max_length in assent: one limit on prompt and response together; "
                "--data.long says what becomes of longer prompts.",
                "--generate_max_len is --sampling.max_new_tokens in assent.",
                "--init_kl_coef is --kl.coef in assent.",
                "--actor_learning_rate is --optim.lr in assent.",
                "--critic_learning_rate is --critic.lr in assent.",
                "--eps_clip is --loss.clip in assent.",
                "--zero_stage has no counterpart in assent: start several processes with torchrun; the model is "
                "sharded over them.",
            ],
        ),
        (
            "rloo --actor.model_name_or_path m --actor.adam.lr 1e-6 --rollout.n_samples_per_prompt 16 "
            "--algo.kl.init_coef 1e-4 --algo.advantage.estimator rloo --critic.adam.lr 1e-5",
            [
                "--actor.model_name_or_path is --model.path in assent.",
                "--actor.adam.lr is --optim.lr in assent.",
                "--rollout.n_samples_per_prompt is --rollout.responses in assent.",
                "--algo.kl.init_coef is --kl.coef in assent.",
                "--algo.advantage.estimator has no counterpart in assent: the command says it, as in assent ppo, "
                "assent grpo or assent rloo.",
                "--critic.adam.lr is --critic.lr in assent, which assent rloo does not have.",
            ],
        ),
        (
            "grpo algorithm.adv_estimator=grpo data.train_files=a.parquet data.max_response_length=1024 "
            "actor_rollout_ref.model.path=m actor_rollout_ref.rollout.n=5 algorithm.kl_ctrl.kl_coef=0.001 "
            "+actor_rollout_ref.actor.optim.lr=1e-6 trainer.total_epochs=15 optim.lr=1",
            [
                "algorithm.adv_estimator= has no counterpart in assent: the command says it, as in assent ppo, "
                "assent grpo or assent rloo.",
                "data.train_files= is --data.train in assent: a file, folder or hub id.",
                "data.max_response_length= is --sampling.max_new_tokens in assent.",
                "actor_rollout_ref.model.path= is --model.path in assent.",
                "actor_rollout_ref.rollout.n= is --rollout.responses in assent.",
                "algorithm.kl_ctrl.kl_coef= is --kl.coef in assent.",
                "+actor_rollout_ref.actor.optim.lr= is --optim.lr in assent.",
                "trainer.total_epochs= is --train.epochs in assent.",
                "optim.lr= is --optim.lr in assent.",
            ],
        ),
        (
            "generate --model_name_or_path m --max_new_tokens 30",
            [
                "--model_name_or_path is MODEL, without a name, in assent.",
                "--max_new_tokens is --sampling.max_new_tokens in assent.",
            ],
        ),
    ],
    ids=["trl dpo", "trl grpo", "llama-factory", "openrlhf", "openrlhf dotted", "verl", "generate"],
)  # fmt: skip
def test_a_command_line_of_another_tool(words: str, expected: list[str], capsys: pytest.CaptureFixture[str]):
    assert told(words, capsys) == [*expected, f"See: assent {words.split()[0]} --help"]


def test_the_answer_depends_on_the_command(capsys: pytest.CaptureFixture[str]):
    (line,) = told("dpo --num_generations 8", capsys)
    assert (
        line
        == "--num_generations is --rollout.responses in assent, which assent dpo does not have. See: assent dpo --help"
    )
    (line,) = told("dpo --max_epochs 8", capsys)
    assert line.startswith("--max_epochs is --train.epochs in assent.")
    (line,) = told("slic --delta 1", capsys)  # TRL's delta is --loss.dual_clip; this one has a delta of its own
    assert line.startswith("Unknown option '--delta' of assent slic. Perhaps you meant '--loss.delta'.")


def test_values_that_look_like_keys_stay_values(capsys: pytest.CaptureFixture[str]):
    lines = told("grpo --rewards.rules numeric=answer seed=1 --learning_rate 1", capsys)
    assert lines == ["--learning_rate is --optim.lr in assent. See: assent grpo --help"]


def test_a_file_of_another_tool(tmp_path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name_or_path: m\ncutoff_len: 1024\nlora_rank: 8\ngradient_accumulation_steps: 8\npref_loss: sigmoid\n"
        "data: {train_files: a}\nactor_rollout_ref:\n  rollout: {n: 5}\n  actor:\n    optim: {lr: 1e-6}\nwhat: 1\n"
    )
    assert told(f"dpo --config {file}", capsys) == [
        f"{file}:1: 'model_name_or_path' is 'model.path' in assent.",
        f"{file}:2: 'cutoff_len' is 'data.max_length' in assent: one limit on prompt and response together; "
        "--data.long says what becomes of longer prompts.",
        f"{file}:3: 'lora_rank' is 'model.lora.rank' in assent: a rank above 0 trains adapters, 0 all weights.",
        f"{file}:4: 'gradient_accumulation_steps' has no counterpart in assent: --train.batch_size is the whole step, "
        "which --train.micro_tokens splits to fit into memory.",
        f"{file}:5: 'pref_loss' has no counterpart in assent: the command says it, as in assent dpo, assent simpo or "
        "assent kto.",
        f"{file}:6: 'data.train_files' is 'data.train' in assent: a file, folder or hub id.",
        f"{file}:8: 'actor_rollout_ref.rollout.n' is 'rollout.responses' in assent, which this command does not have.",
        f"{file}:10: 'actor_rollout_ref.actor.optim.lr' is 'optim.lr' in assent.",
        f"{file}:11: unknown key 'what'.",
    ]
