"""YAMLs for TRL 1.12's PPO script as settings for ppo.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.cli import bind, call, recipe
from toolkit.errors import InputError
from toolkit.training.ppo.config import PPOConfig as OurConfig
from toolkit.trl_compat.yaml_reader import Translation, read_trl_config


def read(tmp_path: Path, text: str) -> Translation:
    (tmp_path / "theirs.yaml").write_text(text)
    return read_trl_config(tmp_path / "theirs.yaml")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "auto"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_four_bit_wins_whatever_the_dtype_and_the_order(
    tmp_path: Path, dtype: str, key: str
) -> None:
    """Beside load_in_4bit a dtype is what the 4-bit layers compute in."""
    lines = ["load_in_4bit: true\n", f"{key}: {dtype}\n"]
    for text in ("".join(lines), "".join(reversed(lines))):
        assert read(tmp_path, text).values["precision"] == "4bit"
    expected = "bf16" if dtype == "bfloat16" else "fp32"
    assert read(tmp_path, f"load_in_4bit: false\n{key}: {dtype}\n").values["precision"] == expected


def test_the_model_that_was_trained_is_the_model_whatever_the_order(tmp_path: Path) -> None:
    """TRL's script read the policy from sft_model_path; of the other it took the tokenizer."""
    lines = ["model_name_or_path: a/tokenizer\n", "sft_model_path: a/policy\n"]
    for text in ("".join(lines), "".join(reversed(lines))):
        assert read(tmp_path, text).values["model_name_or_path"] == "a/policy"


def test_an_adapter_that_was_trained_is_where_the_policy_starts(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base"}')
    found = read(tmp_path, f"model_name_or_path: a/tokenizer\nsft_model_path: {tmp_path / 'sft'}\n")
    assert found.values["model_name_or_path"] == "a/base"
    assert found.values["policy_adapter"] == str(tmp_path / "sft")


def test_schedules_optimizer_and_parts_of_the_run_are_kept(tmp_path: Path) -> None:
    text = (
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.0e-6}\n"
        "warmup_ratio: 0.1\noptim: adafactor\nweight_decay: 0.01\nsave_steps: 0.25\neval_steps: 5\n"
        "learning_rate: 3e-6\n"
    )
    values = read(tmp_path, text).values
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(values))
    *_, config = bind(recipe("ppo").main, ["--config", str(path), "--use_cpu", "true"])
    assert config.lr_scheduler_type == "cosine_with_min_lr"
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-6} and config.warmup_steps == 0.1
    assert (config.optim, config.weight_decay) == ("adafactor", 0.01)
    assert (config.save_steps, config.eval_every, config.learning_rate) == (0.25, 5, 3e-6)


BROKEN = """\
kl_coef: x
bogus: 1
optim: galore_adamw
learning_rate: -1
use_dora: true
num_mini_batches: 3
neftune_noise_alpha: 5
load_in_8bit: true
lora_r: 0
lr_scheduler_type: cosine
lr_scheduler_kwargs: {cycles: 2}
"""


def test_all_problems_are_listed_at_once_each_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, BROKEN)
    lines = [str(raised.value), *raised.value.details]
    places = [line.removeprefix(f"{tmp_path / 'theirs.yaml'}:").partition(": ") for line in lines]
    found = {int(number): text for number, _, text in places}
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    for number, line in enumerate(BROKEN.splitlines(), 1):
        assert number == 10 or line.split(":")[0] in found[number]


# What a file may hold, one field at a time: either it is refused, or ppo.py reads what is written.
GIVEN: dict[str, Any] = {
    "max_steps": 10,
    "fp16": True,
    "bf16": True,
    "gradient_checkpointing": True,
    "fsdp": "full",
    "deepspeed": "ds.json",
    "push_to_hub": True,
    "hub_model_id": "a/b",
    "log_level": "info",
    "ddp_timeout": 60,
    "data_seed": 1,
    "logging_dir": "x",
    "report_to": "none",
    "run_name": "x",
    "max_grad_norm": 1.0,
    "load_best_model_at_end": True,
    "save_strategy": "epoch",
    "eval_strategy": "steps",
    "torch_compile": True,
    "use_liger_kernel": True,
    "lora_modules_to_save": ["lm_head"],
    "use_rslora": True,
    "lora_target_parameters": ["x"],
    "bnb_4bit_quant_type": "fp4",
    "dataset_streaming": True,
    "dataloader_num_workers": 4,
    "full_determinism": True,
    "num_train_epochs": 2,
    "missing_eos_penalty": 1.0,
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "stop_token": "eos",
    "whiten_rewards": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "model_adapter_name": "x",
    "per_device_train_batch_size": 3,
    "kl_estimator": "k3",
    "save_total_limit": 1,
    "num_sample_generations": 0,
    "batch_size": 64,
    "metric_for_best_model": "loss",
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_written_is_what_ppo_reads(tmp_path: Path, name: str) -> None:
    text = yaml.safe_dump({name: GIVEN[name]})
    try:
        values = read(tmp_path, text).values
    except InputError as error:
        assert name in str(error) and ":1: " in str(error)
        return
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(values))
    bind(recipe("ppo").main, ["--config", str(path)])


def test_it_ends_with_the_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.yaml").write_text(
        "sft_model_path: a/b\ndataset_name: c/d\ndataset_train_split: odd\nreward_model_path: e/f\n"
    )
    out = tmp_path / "my ours.yaml"
    main = recipe("trl_config").main
    call(main, ["--input", str(tmp_path / "theirs.yaml"), "--output", str(out)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"next: preftune ppo --config '{out}' --prompts c/d:odd"


@pytest.mark.parametrize(
    ("text", "told"),
    [("", None), ('eval_strategy: "no"\n', None), ("eval_strategy: steps\n", "c/d:test"),
     ("eval_strategy: epoch\ndataset_test_split: dev\n", "c/d:dev"),
     ("eval_strategy: steps\neval_prompts: held.jsonl\n", None)],
)  # fmt: skip
def test_held_out_prompts_are_in_the_command_where_their_run_evaluated(
    tmp_path: Path, text: str, told: str | None
) -> None:
    missing = read(tmp_path, "dataset_name: c/d\n" + text).missing
    flags = [flag for flag in missing if flag.startswith("--eval_prompts")]
    assert flags == ([] if told is None else [f"--eval_prompts {told}"])


def test_a_configuration_of_the_dataset_that_nothing_here_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=":2: dataset_config: 'en': .* default configuration"):
        read(tmp_path, "dataset_name: c/d\ndataset_config: en\n")
    assert "dataset_config" not in read(tmp_path, "dataset_config: default\n").values


def test_nothing_is_written_where_ppo_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("optim: lomo\n")
    out = tmp_path / "ours.yaml"
    words = ["--input", str(tmp_path / "theirs.yaml"), "--output", str(out)]
    with pytest.raises(InputError, match="theirs.yaml:1: optim is 'lomo'"):
        call(recipe("trl_config").main, words)
    assert not out.exists()


def test_a_yaml_for_trl_is_translated_and_every_change_named(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(
        "sft_model_path: a/model\nreward_model_path: a/reward\nload_in_4bit: true\n"
        "dataset_name: x\nlearning_rate: 1.0e-5\nkl_coef: 0.1\nbf16: true\nlora_r: 8\n"
        "gradient_checkpointing: true\nmissing_eos_penalty: 1.0\nstop_token: eos\n"
        "lora_target_modules: [q_proj, v_proj]\nnum_mini_batches: 2\n"
    )
    read = read_trl_config(tmp_path / "theirs.yaml")
    values, notes = read.values, read.notes
    assert values["model_name_or_path"] == "a/model" and values["reward_model"] == "a/reward"
    assert values["precision"] == "4bit" and values["lora_target_modules"] == "q_proj,v_proj"
    assert values["kl_coef"] == 0.1 and values["kl_controller"] == "fixed"
    assert values["response_length"] == 53 and values["whiten_rewards"] is False
    assert "bf16" not in values and "dataset_name" not in values
    named = {note.split(":")[0] for note in notes}
    assert {
        "sft_model_path",
        "reward_model_path",
        "load_in_4bit",
        "bf16",
        "dataset_name",
        "gradient_checkpointing",
        "response_length",
        "kl_controller",
    } <= named
    assert not {"learning_rate", "kl_coef", "lora_r", "stop_token"} & named
    own = {k: v for k, v in values.items() if k in OurConfig.__dataclass_fields__}
    ours = OurConfig(use_cpu=True, **(own | {"output_dir": "x"}))
    assert ours.kl_coef == 0.1 and ours.stop_token == "eos"


@pytest.mark.parametrize(
    ("text", "message"),
    [("kl_coef: 0.1\nkl_coeff: 1\n", ":2: kl_coeff is not a field"),
     ("- 1\n", "not a YAML mapping"),
     ("a: [", "cannot be read as YAML"), ("dtype: int3\n", ":1: dtype: 'int3' is not a type")],
)  # fmt: skip
def test_a_broken_yaml_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_trl_config(tmp_path / "theirs.yaml")


def test_the_recipe_writes_a_config_that_ppo_reads(tmp_path: Path) -> None:
    from toolkit.cli import bind, call, recipe

    ppo, trl_config = recipe("ppo"), recipe("trl_config")
    (tmp_path / "theirs.yaml").write_text("kl_coef: 0.1\nresponse_length: 20\n")
    out = tmp_path / "ours.yaml"
    call(trl_config.main, ["--input", str(tmp_path / "theirs.yaml"), "--output", str(out)])
    assert yaml.safe_load(out.read_text())["kl_coef"] == 0.1
    *_, read = bind(ppo.main, ["--config", str(out), "--use_cpu", "true"])
    assert (read.kl_coef, read.response_length, read.adam_epsilon) == (0.1, 20, 1e-8)


@pytest.mark.parametrize(
    ("text", "message"),
    [("lora_target_modules: null\n", None), ("dtype: [1]\n", ":1: dtype: [1] is not a type"),
     ("1: 2\n", ":1: 1 is not a field"), ("<<: {kl_coef: 1}\n", "a merge"),
     ("kl_coef: 1\nkl_coef: 2\n", ":2: kl_coef twice")],
)  # fmt: skip
def test_odd_yaml_is_named_too(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    if message is None:
        assert read_trl_config(tmp_path / "theirs.yaml").values["precision"] == "fp32"
        return
    with pytest.raises(InputError, match=re.escape(message)):
        read_trl_config(tmp_path / "theirs.yaml")
