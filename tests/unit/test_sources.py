"""What a path means, and that what it means is loaded whole or refused at once."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from assent import cli
from assent.algorithms.sft import train_sft
from assent.config import DataConfig, LoraConfig, ModelConfig, OptimConfig, SFTConfig, TrainConfig
from assent.errors import ModelError
from assent.models.loading import load_policy, load_tokenizer
from assent.models.sources import model_folder, resolve

IDS = torch.arange(3, 40)[None]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def read(folder: Path | str) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def loaded(path: Path | str) -> torch.Tensor:
    return logits(load_policy(ModelConfig(str(path), precision="fp32", layout="flat"), max_length=64).model)


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}) for i in range(8)]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, rows: Path, tmp_path_factory) -> Path:
    """A run of LoRA: its checkpoints, final model and adapters."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    train_sft(
        SFTConfig(
            model=ModelConfig(str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=2)),
            data=DataConfig(str(rows), max_length=64),
            out=str(out),
            optim=OptimConfig(lr=0.01),
            train=TrainConfig(batch_size=4, max_steps=4, save_every=2),
        )
    )
    return out


# ---- what does not exist


@pytest.mark.parametrize("path", "runs/nope ./nope ../nope ~/nope /none/there a/b/c here/modle x/".split())
def test_what_looks_like_a_path_is_never_asked_of_the_hub(path: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assent.models.sources.hf_api", lambda: pytest.fail("asked the hub"))
    begin = time.monotonic()
    with pytest.raises(ModelError, match="there is no such folder") as error:
        load_tokenizer(ModelConfig(path))
    assert time.monotonic() - begin < 1
    if path == "here/modle":
        assert "Did you mean here/model?" in str(error.value)


def test_the_hub_is_asked_once_and_its_answer_is_short(monkeypatch) -> None:
    class Away:
        def repo_info(self, path, **_):
            raise ConnectionError("[Errno -2] Name or service not known\nand twenty more lines")

    monkeypatch.setattr("assent.models.sources.is_offline_mode", lambda: False)
    monkeypatch.setattr("assent.models.sources.hf_api", Away)
    for load in (load_tokenizer, lambda config: load_policy(config, max_length=64)):
        with pytest.raises(ModelError) as error:
            load(ModelConfig("owner/name"))
        assert str(error.value) == (
            "owner/name: there is no such folder here, and the hub did not give it ([Errno -2] Name or service not "
            "known). The command that fetches it: hf download owner/name"
        )
    monkeypatch.setattr("assent.models.sources.is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match="the hub is not asked"):
        load_tokenizer(ModelConfig("owner/name"))
    assert resolve("owner/name", "v1").base == model_folder("owner/name") == "owner/name"


def test_a_run_without_a_final_model_names_its_checkpoint(run: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(run / "checkpoints", half / "checkpoints")
    with pytest.raises(ModelError, match=r"its newest checkpoint is .*half/checkpoints/step-000004"):
        resolve(str(half))


# ---- adapters and checkpoints


def test_an_adapter_folder_is_its_base_with_the_adapters_merged(run: Path, tiny_model_dir: Path) -> None:
    adapter = run / "model" / "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    want = logits(PeftModel.from_pretrained(base, adapter))
    torch.testing.assert_close(loaded(adapter), want, atol=1e-4, rtol=0)
    assert (want - read(tiny_model_dir)).abs().max() > 1e-3
    tokenizer = load_tokenizer(ModelConfig(str(adapter)))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model_dir).chat_template
    with pytest.raises(ModelError, match=r"not a whole model by itself.*assent export"):
        model_folder(str(adapter))


def test_new_adapters_go_on_from_the_merged_ones(run: Path, tokenizer, tmp_path: Path) -> None:
    from assent.models.saving import save_model

    adapter = run / "model" / "adapter"
    config = ModelConfig(str(adapter), precision="fp32", layout="flat", lora=LoraConfig(rank=3))
    policy = load_policy(config, max_length=64)
    torch.testing.assert_close(logits(policy.model), loaded(adapter), atol=1e-4, rtol=0)
    with policy.without_adapters():  # the reference is the start, not the bare base
        torch.testing.assert_close(logits(policy.model), loaded(adapter), atol=1e-4, rtol=0)
    save_model(policy, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists(), "their base is in no folder"


def test_a_checkpoint_is_its_model(run: Path) -> None:
    last = loaded(run / "checkpoints" / "step-000004")
    torch.testing.assert_close(last, read(run / "model"), atol=1e-4, rtol=0)
    assert (loaded(run / "checkpoints" / "step-000002") - last).abs().max() > 1e-4
    assert len(resolve(str(run / "checkpoints" / "step-000002")).files()) == 3


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    file = other / "checkpoints" / "step-000004" / "policy.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match="was damaged"):
        resolve(str(file.parent))
    (other / "resolved.yaml").unlink()
    with pytest.raises(ModelError, match="the options of its run are needed"):
        resolve(str(other / "checkpoints" / "step-000002"))


def test_adapters_that_do_not_fit_are_refused(run: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(run / "model" / "adapter", tmp_path / "adapter"))
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"its adapters belong to .*gone, which cannot be had: .*no such folder"):
        resolve(str(adapter))
    edit(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not say which model the adapters belong to"):
        resolve(str(adapter))
    edit(adapter / "adapter_config.json", peft_type="IA3", base_model_name_or_path="x")
    with pytest.raises(ModelError, match="adapters of the kind IA3. assent reads LoRA"):
        resolve(str(adapter))


def test_adapters_of_a_deeper_model_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.num_hidden_layers = 3
    deep = get_peft_model(AutoModelForCausalLM.from_config(config), PeftConfig(r=2, target_modules=["q_proj"]))
    deep.save_pretrained(tmp_path)
    edit(tmp_path / "adapter_config.json", base_model_name_or_path=str(tiny_model_dir))
    with pytest.raises(ModelError, match=r"the model has no place for 2 of these weights: .*layers\.2"):
        load_policy(ModelConfig(str(tmp_path)), max_length=64)


def test_adapters_beside_a_whole_model_are_refused(run: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(run / "model", tmp_path / "both"))
    shutil.copy(run / "model" / "adapter" / "adapter_config.json", both)
    with pytest.raises(ModelError, match="holds both a whole model and adapters"):
        resolve(str(both))


# ---- weights and configuration


def test_surplus_weights_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "short"))
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"its weights hold model\.layers\.1.* and 6 more, for which config"):
        load_policy(ModelConfig(str(folder)), max_length=64)


def test_known_leftovers_do_no_harm_or_are_said(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "old"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["vision_tower.patch.weight"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(loaded(folder), loaded(tiny_model_dir))
    assert "not loaded, and not in what is saved: vision_tower.patch (1 weights)" in capsys.readouterr().err


# ---- assent export


def test_export(run: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    step = run / "checkpoints" / "step-000004"
    for name, path in {"run": run, "step": step, "adapter": run / "model" / "adapter"}.items():
        assert cli.main(["export", str(path), "--out", str(tmp_path / name)]) == 0
        torch.testing.assert_close(read(tmp_path / name), read(run / "model"), atol=1e-4, rtol=0)
        assert AutoTokenizer.from_pretrained(tmp_path / name).chat_template
        card = (tmp_path / name / "README.md").read_text()
        assert str(path) in card and "Read back by transformers" in card
    kept = ["export", str(step), "--out", str(tmp_path / "kept"), "--adapters", "keep", "--dtype", "bf16"]
    assert cli.main(kept) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "kept").dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "kept" / "adapter"))
    torch.testing.assert_close(adapted, read(run / "model"), atol=0.2, rtol=0)


def test_export_refuses(run: Path, tiny_model_dir: Path, capsys) -> None:
    assert cli.main(["export", str(run), "--out", str(run)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert cli.main(["export", str(tiny_model_dir), "--out", str(run / "x"), "--adapters", "keep"]) == 2
    assert "is not one set of adapters on a whole model" in capsys.readouterr().err
    assert not (run / "x").exists()


def test_export_of_a_reward_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "reward")
    assert cli.main(["export", str(tmp_path / "reward"), "--out", str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(again.score.weight, model.score.weight), "a reward head keeps its precision"
    assert again.config.eos_token_id == model.config.eos_token_id


def test_generate_answers_from_a_checkpoint(run: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    step = str(run / "checkpoints" / "step-000004")
    shared = ["--prompts", str(rows), "--sampling.max_new_tokens", "4", "--precision", "fp32"]
    assert cli.main(["generate", step, "--out", str(out), *shared]) == 0
    assert cli.main(["generate", str(run), "--out", str(tmp_path / "final.jsonl"), *shared]) == 0
    assert out.read_text() == (tmp_path / "final.jsonl").read_text()


def test_adapters_of_a_reward_model(tiny_model_dir: Path, run: Path, tokenizer, tmp_path: Path) -> None:
    from assent.models.heads import load_score_model
    from assent.models.saving import save_model

    def scorer(path: Path, **options):
        config = ModelConfig(str(path), precision="fp32", layout="flat", **options.pop("model", {}))
        return load_score_model(config, tokenizer, max_length=64, **options)

    trained = scorer(tiny_model_dir, model={"lora": LoraConfig(rank=2)}, seed=3)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(trained, tokenizer, tmp_path / "reward")
    whole, put_together = (
        scorer(tmp_path / "reward" / name, new_head=False, trainable=False) for name in ("", "adapter")
    )
    with torch.no_grad():
        want = whole.model(input_ids=IDS).logits
        torch.testing.assert_close(put_together.model(input_ids=IDS).logits, want, atol=1e-5, rtol=0)
    assert cli.main(["export", str(tmp_path / "reward" / "adapter"), "--out", str(tmp_path / "out")]) == 0
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, want, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="has no trained reward head"):
        scorer(run / "model" / "adapter", new_head=False)
