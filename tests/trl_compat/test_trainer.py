"""Scripts and configurations written for TRL 1.12's PPO."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)

from tests.forks import Forked
from toolkit.errors import InputError
from toolkit.trl_compat import PPOConfig, PPOTrainer
from toolkit.trl_compat.separate_models import SeparateModels

pytestmark = pytest.mark.slow  # trains whole models


def parts(model: str, **kwargs: Any) -> dict[str, Any]:
    """What a script for TRL 1.12 hands to the trainer, on a tiny model."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # an id beyond the embedding, as there
    classifier = AutoModelForSequenceClassification.from_pretrained
    texts = ["We went to the market.", "I met my aunt at the cafe by the lake."] * 8
    rows = Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"]})
    return {
        "processing_class": tokenizer,
        "model": AutoModelForCausalLM.from_pretrained(model),
        "ref_model": AutoModelForCausalLM.from_pretrained(model),
        "reward_model": classifier(model, num_labels=1),
        "value_model": classifier(model, num_labels=1),
        "train_dataset": rows,
        "eval_dataset": rows.select(range(5)),
    } | kwargs


def config(tmp_path: Path, **kwargs: Any) -> PPOConfig:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "total_episodes": 24,
        "response_length": 6,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "num_ppo_epochs": 2,
    }
    return PPOConfig(output_dir=str(tmp_path / "out"), **(options | kwargs))


SCRIPT = """
import shutil
from accelerate import PartialState
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser,
)
from trl import ModelConfig, ScriptArguments, get_peft_config
from toolkit.trl_compat import PPOConfig, PPOTrainer

parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
script, args, model_args = parser.parse_args_into_dataclasses()
shutil.rmtree(args.output_dir, ignore_errors=True)
tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
tokenizer.add_special_tokens({"pad_token": "[PAD]"})
load = AutoModelForSequenceClassification.from_pretrained
value, reward = (load(args.reward_model_path, num_labels=1) for _ in range(2))
policy = AutoModelForCausalLM.from_pretrained(args.sft_model_path)
peft_config = get_peft_config(model_args)
reference = None if peft_config else AutoModelForCausalLM.from_pretrained(args.sft_model_path)
data = load_dataset("json", data_files=script.dataset_name, split=script.dataset_train_split)
with PartialState().local_main_process_first():
    data = data.map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]},
        remove_columns=data.column_names, num_proc=args.dataset_num_proc,
    )
trainer = PPOTrainer(
    args=args, processing_class=tokenizer, model=policy, ref_model=reference,
    reward_model=reward, value_model=value, train_dataset=data.select(range(20)),
    eval_dataset=data.select(range(20, 24)), peft_config=peft_config,
)
trainer.train()
trainer.save_model(args.output_dir)
if args.push_to_hub:
    trainer.push_to_hub(dataset_name=script.dataset_name)
trainer.generate_completions()
"""


@pytest.mark.parametrize("peft", [False, True])
def test_a_script_for_trl_runs_with_the_import_changed(
    family_model: str, tmp_path: Path, peft: bool
) -> None:
    """The calls and flags of TRL's own examples/scripts/ppo/ppo.py, end to end in a process."""
    if peft and "llama" not in family_model:
        pytest.skip("adapters are tried on one family")
    (tmp_path / "script.py").write_text(SCRIPT)
    rows = [{"prompt": f"We went to the market {i % 7} times."} for i in range(24)]
    (tmp_path / "data.json").write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "out"
    words = ["--dataset_name", str(tmp_path / "data.json"), "--dataset_train_split", "train",
             "--learning_rate", "1e-4", "--output_dir", str(out), "--use_cpu", "True",
             "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
             "--total_episodes", "16", "--model_name_or_path", family_model, "--sft_model_path",
             family_model, "--reward_model_path", family_model, "--missing_eos_penalty", "1.0",
             "--response_length", "5", "--num_sample_generations", "1", "--stop_token", "eos",
             "--local_rollout_forward_batch_size", "4", "--eval_strategy", "steps",
             "--logging_steps", "1"]  # fmt: skip
    if peft:
        words += ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    script = Forked(tmp_path / "script.py", words, tmp_path / "said.txt", tmp_path)
    said = script.wait()
    assert script.returncode == 0, said[-2000:]
    assert "model response" in said
    saved = {path.name for path in out.iterdir()}
    assert ("adapter_model.safetensors" if peft else "model.safetensors") in saved
    assert "tokenizer_config.json" in saved and "completions.jsonl" in saved
    if not peft:
        AutoModelForCausalLM.from_pretrained(out)


def test_the_log_has_trls_metric_names(demo_model: str, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            seen.append(logs)

    PPOTrainer(config(tmp_path), callbacks=[Tracker()], **parts(demo_model)).train()
    assert len(seen) == 3
    assert {
        "eps",
        "objective/kl",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "policy/entropy_avg",
        "val/ratio",
        "val/ratio_var",
        "val/num_eos_tokens",
        "lr",
        "episode",
    } <= seen[0].keys()


def test_whole_models_train_whole_and_the_reference_stays(demo_model: str, tmp_path: Path) -> None:
    given = parts(demo_model)
    before = {k: copy.deepcopy(given[k].state_dict()) for k in given if k.endswith("model")}
    PPOTrainer(config(tmp_path), **given).train()
    for name, state in before.items():
        moved = [k for k, v in given[name].state_dict().items() if not torch.equal(v, state[k])]
        assert bool(moved) is (name in ("model", "value_model")), name
    assert "lm_head.weight" in before["model"]


def test_without_ref_model_a_plain_policy_is_copied_and_an_adapter_switched_off(
    demo_model: str, tmp_path: Path
) -> None:
    rows = PPOTrainer(config(tmp_path / "copied"), **parts(demo_model, ref_model=None)).train()
    assert abs(rows[0]["objective/kl"]) < 1e-4 < abs(rows[2]["objective/kl"])
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(config(tmp_path), **parts(demo_model, ref_model=None), peft_config=lora)
    rows = trainer.train()
    assert isinstance(trainer.model.policy, PeftModel) and trainer.model.reference is None
    assert abs(rows[0]["objective/kl"]) < 1e-4 < abs(rows[2]["objective/kl"])


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit"])
def test_a_run_of_whole_models_resumes_exactly(demo_model: str, tmp_path: Path, optim: str) -> None:
    """bitsandbytes' 8-bit moments read a table that all parameters have in common."""
    options = {"save_steps": 1, "optim": optim}
    whole = PPOTrainer(config(tmp_path / "a", **options), **parts(demo_model)).train()
    short = PPOTrainer(config(tmp_path / "b", **options), **parts(demo_model))
    short.num_updates, updates = 3, short.updates
    short.updates = lambda resume: (u for u in updates(resume) if u < 3)
    short.train()
    again = PPOTrainer(config(tmp_path / "b", **options), **parts(demo_model))
    assert again.train(resume_from_checkpoint=True) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_model": None}, "value_model: a plain model needs one"),
        ({"reward_model": None}, "PPO needs a reward"),
        ({"train_dataset": None}, "train_dataset has no prompts"),
        ({"data_collator": lambda rows: rows}, "data_collator: function is not used"),
    ],
)
def test_what_does_not_go_together_is_said(
    demo_model: str, tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PPOTrainer(config(tmp_path), **parts(demo_model, **change))


def test_model_and_reference_must_be_two(demo_model: str, tmp_path: Path) -> None:
    given = parts(demo_model)
    with pytest.raises(InputError, match="the same object"):
        PPOTrainer(config(tmp_path), **(given | {"ref_model": given["model"]}))


def test_a_padding_collator_and_optimizers_of_ones_own_are_taken(
    demo_model: str, tmp_path: Path
) -> None:
    given = parts(demo_model)
    trained = [*given["model"].parameters(), *given["value_model"].parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    rows = PPOTrainer(
        config(tmp_path),
        **given,
        optimizers=(optimizer, schedule),
        data_collator=DataCollatorWithPadding(given["processing_class"]),
    ).train()
    assert [row["lr"] for row in rows] == pytest.approx([0.5, 0.25, 0.5 / 3])


def test_completions_come_as_a_table(demo_model: str, tmp_path: Path) -> None:
    trainer = PPOTrainer(config(tmp_path, stop_token="eos"), **parts(demo_model))
    rows = trainer.generate_completions()
    assert len(rows) == 5 and rows[0].keys() == {"query", "model response", "score"}
    again = trainer.generate_completions(sampling=True)
    assert again == rows


def test_pushing_is_refused_before_a_run_and_after_it(demo_model: str, tmp_path: Path) -> None:
    """TRL's flag and method: one line that names the recipe, which checks what it sends."""
    with pytest.raises(InputError, match=r"^push_to_hub: .*preftune publish\)$"):
        config(tmp_path, push_to_hub=True)
    trainer = PPOTrainer(config(tmp_path), **parts(demo_model))
    with pytest.raises(InputError, match="preftune publish"):
        trainer.push_to_hub(dataset_name="any", commit_message="any")


def test_logits_that_are_capped_without_a_word_in_the_config_are_refused(
    demo_model: str, tmp_path: Path
) -> None:
    given = parts(demo_model)
    forward = given["model"].forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    given["model"].forward = capped
    with pytest.raises(InputError, match="does something else"):
        PPOTrainer(config(tmp_path), **given)
    assert SeparateModels.scores_stop


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_adapter_that_cannot_be_switched_off_needs_a_reference(
    demo_model: str, tmp_path: Path
) -> None:
    for config_ in (
        IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]),
        LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa"),
    ):
        with pytest.raises(InputError, match="pass a ref_model"):
            PPOTrainer(config(tmp_path), **parts(demo_model, ref_model=None), peft_config=config_)


def test_learning_rates_of_ones_own_groups_fall_each_from_its_own(
    demo_model: str, tmp_path: Path
) -> None:
    given = parts(demo_model)
    optimizer = torch.optim.SGD(
        [
            {"params": given["model"].parameters(), "lr": 0.1},
            {"params": given["value_model"].parameters(), "lr": 0.2},
        ]
    )
    rows = PPOTrainer(config(tmp_path), **given, optimizers=(optimizer, None)).train()
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 / 3, 0.2 / 3])


def padded(model: str) -> tuple[Any, list[list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    texts = ["We went to the market.", "I met my aunt at the cafe by the lake.", "Oh."]
    return tokenizer, tokenizer(texts)["input_ids"]


def test_padded_prompts_train_to_the_same_numbers(demo_model: str, tmp_path: Path) -> None:
    tokenizer, plain = padded(demo_model)
    rows = Dataset.from_dict({"input_ids": plain * 6})
    wide = Dataset.from_dict(dict(tokenizer.pad({"input_ids": plain * 6}))).with_format("torch")
    first, second = (
        PPOTrainer(
            config(tmp_path / name), **parts(demo_model, train_dataset=data, eval_dataset=data)
        ).train()
        for name, data in (("plain", rows), ("padded", wide))
    )
    assert first == second


def test_several_eval_datasets_have_metrics_by_name_and_together(
    demo_model: str, tmp_path: Path
) -> None:
    """Each has what it would have alone; together, the mean over all their prompts."""
    given = parts(demo_model)
    rows = given["train_dataset"]
    sets = {"short": rows.select(range(0, 6, 2)), "long": rows.select(range(1, 10, 2))}
    both = PPOTrainer(config(tmp_path / "both"), **(given | {"eval_dataset": sets})).evaluate()
    for name, data in sets.items():
        one = PPOTrainer(config(tmp_path / name), **parts(demo_model, eval_dataset=data)).evaluate()
        for metric in ("scores", "scores_error", "kl", "rlhf_reward"):
            assert both[f"eval/{name}/{metric}"] == pytest.approx(one[f"eval/{metric}"], abs=1e-5)
    for metric in ("scores", "kl"):
        mean = (3 * both[f"eval/short/{metric}"] + 5 * both[f"eval/long/{metric}"]) / 8
        assert both[f"eval/{metric}"] == pytest.approx(mean, abs=1e-6)
    assert both["eval/short/scores"] != both["eval/long/scores"]


def test_several_eval_datasets_are_logged_and_completed(demo_model: str, tmp_path: Path) -> None:
    given = parts(demo_model)
    sets = {"a": given["train_dataset"].select(range(3)), "b": given["train_dataset"].select([3])}
    trainer = PPOTrainer(
        config(tmp_path, eval_strategy="steps", eval_steps=2), **(given | {"eval_dataset": sets})
    )
    rows = trainer.train()
    assert ["eval/b/scores" in row for row in rows] == [False, True, True]  # and at the end
    assert len(trainer.generate_completions()) == 4
    assert (tmp_path / "out" / "best" / "evaluation.json").is_file()


def test_a_classifier_and_a_function_score_together(demo_model: str, tmp_path: Path) -> None:
    """The sum, weighted: twice the model's score and three for every completion."""

    def three(prompts: list[str], completions: list[str]) -> list[float]:
        return [3.0] * len(completions)

    given = parts(demo_model)
    alone = PPOTrainer(config(tmp_path / "a"), **given).evaluate()["eval/scores"]
    rewards = [given["reward_model"], three]
    both = PPOTrainer(
        config(tmp_path / "b"),
        **(parts(demo_model) | {"reward_model": rewards}),
        reward_weights=[2.0, 1.0],
    ).evaluate()["eval/scores"]
    assert both == pytest.approx(2 * alone + 3, abs=1e-5)


def test_the_trainer_works_out_the_sizes_that_scripts_read(demo_model: str, tmp_path: Path) -> None:
    """The seven fields of TRL's that this configuration lacked: a script may set and read them."""
    args = config(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        total_episodes=None,
        num_train_epochs=1.5,
        batch_size=99,
        ds3_gather_for_generation=False,
    )
    trainer = PPOTrainer(args, **parts(demo_model))
    sizes = (
        args.batch_size,
        args.local_batch_size,
        args.micro_batch_size,
        args.mini_batch_size,
        args.local_mini_batch_size,
        args.num_total_batches,
        args.world_size,
    )
    assert sizes == (8, 8, 4, 4, 4, 3, 1)
    assert args.total_episodes == 24 and trainer.num_updates == 3  # 1.5 times 16 prompts


def test_a_callback_may_ask_for_a_checkpoint(demo_model: str, tmp_path: Path) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            control.should_save = state.global_step == 2

    trainer = PPOTrainer(config(tmp_path, save_total_limit=3), **parts(demo_model))
    trainer.add_callback(Asks())
    trainer.train()
    saved = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert saved == ["checkpoint-000002", "checkpoint-000003"]


def test_another_number_of_epochs_is_another_run(demo_model: str, tmp_path: Path) -> None:
    """The schedule depends on it, so going on under another one would not be exact."""
    options = {"total_episodes": None, "save_steps": 1}
    PPOTrainer(config(tmp_path, num_train_epochs=1, **options), **parts(demo_model)).train()
    again = PPOTrainer(
        config(tmp_path, num_train_epochs=2, resume_from_checkpoint="true", **options),
        **parts(demo_model),
    )
    with pytest.raises(InputError, match="total_episodes: was 16, is 32"):
        again.train()


def test_an_optimizer_of_what_the_adapter_froze_is_refused(demo_model: str, tmp_path: Path) -> None:
    """peft_config freezes the model's own weights, and nothing would be learned, in silence."""
    given = parts(demo_model, ref_model=None)
    optimizer = torch.optim.SGD(given["model"].parameters(), lr=0.1)
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(InputError, match="nothing in the optimizer requires a gradient"):
        PPOTrainer(config(tmp_path), **given, peft_config=lora, optimizers=(optimizer, None))
