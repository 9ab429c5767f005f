"""A chat model from messages to a publication, held against plain transformers and peft.

The base is small and random, with a chat template, two end tokens, and more rows in its embedding
than the tokenizer has tokens; the policy starts from an adapter that was trained with a token of
its own, and brings its tokenizer.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl
from toolkit.data.prompts import read_prompts
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.reading import reading_of
from toolkit.models.roles import Roles
from toolkit.models.sampling import sampling_rule
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.scoring.scorer import TokenCompletions

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCORER = '''
import json


def length(prompts, completions, tag=None):
    """Longer answers are better; notes the form in which it was asked."""
    with open("asked.jsonl", "a") as stream:
        json.dump([prompts[0], completions[0], tag[0] if tag else None], stream)
        stream.write("\\n")
    return [float(len(c[0]["content"])) for c in completions]
'''
LENGTH = ["--response_length", "12", "--temperature", "1"]


def make_base(demo_model: str, folder: Path) -> None:
    shutil.copytree(demo_model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1024)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<s>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1088,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=1024,
            eos_token_id=1,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
    )
    model.generation_config.eos_token_id = [1, 1026]
    model.save_pretrained(folder)


def make_adapter(base: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|note|>"]})
    tokenizer.chat_template = TEMPLATE.replace("assistant\n", "assistant\n<|note|>")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
            modules_to_save=["embed_tokens", "lm_head"],
        ),
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, root: Path, demo_model: str) -> Iterator[Path]:
    """The folder with what every stage left."""
    out = tmp_path_factory.mktemp("chat")
    make_base(demo_model, out / "base")
    make_adapter(out / "base", out / "sft")
    lines = (root / "data" / "prompts.jsonl").read_text().splitlines()[:160]
    rows = [
        {"prompt": [{"role": "user", "content": json.loads(line)["prompt"]}], "tag": i}
        for i, line in enumerate(lines)
    ]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "chat_scorer.py").write_text(SCORER)
    base = ["--model_name_or_path", str(out / "base"), "--precision", "fp32"]
    prompts = ["--prompts", "prompts.jsonl"]
    quiet = ["--use_cpu", "--disable_tqdm", "true"]
    cwd = os.getcwd()
    os.chdir(out)
    try:
        call(
            recipe("sample").main,
            [*base, *prompts, *LENGTH, "--adapter", "sft", "--output", "samples.jsonl"],
        )
        call(
            recipe("label").main,
            [
                "--samples",
                "samples.jsonl",
                "--reward_function",
                "chat_scorer:length",
                "--output",
                "comparisons.jsonl",
            ],
        )
        call(
            recipe("reward").main,
            [
                *base,
                *LENGTH,
                *quiet,
                "--tokenizer_name_or_path",
                "sft",
                "--comparisons",
                "comparisons.jsonl",
                "--folds",
                "0",
                "--eval_rows",
                "40",
                "--num_train_epochs",
                "3",
                "--learning_rate",
                "1e-2",
                "--normalize_samples",
                "32",
                "--end_token",
                "eos",
                "--output_dir",
                "reward",
            ],
        )
        call(
            recipe("ppo").main,
            [
                *base,
                *prompts,
                *LENGTH,
                *quiet,
                "--policy_adapter",
                "sft",
                "--reward_adapter",
                "reward/adapter",
                "--reward_function",
                "chat_scorer:length",
                "--reward_weights",
                "1",
                "0.1",
                "--total_episodes",
                "64",
                "--per_device_train_batch_size",
                "16",
                "--learning_rate",
                "1e-3",
                "--allow_untrusted_reward",
                "true",
                "--output_dir",
                "ppo",
            ],
        )
        call(
            recipe("sft").main,
            [
                *base,
                *quiet,
                "--policy_adapter",
                "sft",
                "--comparisons",
                "comparisons.jsonl",
                "--max_steps",
                "1",
                "--eval_rows",
                "10",
                "--output_dir",
                "more",
            ],
        )
        judges = ["--reward_function", "chat_scorer:length", "--reward_adapter", "reward/adapter"]
        call(
            recipe("evaluate").main,
            [
                *base,
                *prompts,
                *LENGTH,
                *judges,
                "--limit",
                "24",
                "--contenders",
                "sft=sft",
                "ppo=ppo/adapters/policy",
                "best=best_of_4:ppo",
                "--output_dir",
                "evaluation",
            ],
        )
        call(
            recipe("evaluate").main,
            [
                *base,
                *LENGTH,
                *judges,
                "--samples",
                "evaluation/samples.jsonl",
                "--output_dir",
                "again",
            ],
        )
        yield out
    finally:
        os.chdir(cwd)


def test_functions_are_asked_in_one_form_by_every_recipe_with_the_rows_columns(chain: Path) -> None:
    asked = [json.loads(line) for line in (chain / "asked.jsonl").read_text().splitlines()]
    for prompt, completion, _ in asked:
        assert [m["role"] for m in prompt] == ["user"]
        assert [m["role"] for m in completion] == ["assistant"]
    assert any(tag is not None for _, _, tag in asked)
    rows = [row for _, row in read_jsonl(chain / "samples.jsonl")]
    given = [row["prompt"] for _, row in read_jsonl(chain / "prompts.jsonl")]
    assert all(row["prompt"] in given for row in rows)  # written back as they were read


@pytest.mark.parametrize("folder", ["sft", "ppo/adapters/policy"])
def test_sampling_has_plain_pefts_logprobs_of_the_tokens_and_ends_where_the_model_does(
    chain: Path, folder: str
) -> None:
    base = str(chain / "base")
    tokenizer = load_tokenizer(str(chain / folder), base=base)
    own = AutoTokenizer.from_pretrained(chain / folder)
    assert (
        len(own) == 1028
        and own.chat_template == AutoTokenizer.from_pretrained(chain / "sft").chat_template
    )
    prompts, _ = read_prompts(chain / "prompts.jsonl", tokenizer, 128, limit=12)
    expected = [
        own.apply_chat_template(m, add_generation_prompt=True, tokenize=True, return_dict=False)
        for m in prompts.messages.values()
    ]
    assert list(prompts) == expected
    roles = Roles(load_base(base, "fp32"), value="adapter", policy_adapter=chain / folder)
    roles.keep_only(tokenizer)
    rule = sampling_rule(tokenizer, 24, 1.0)
    assert rule.stop_ids == (1, 1026)
    noise = torch.Generator().manual_seed(0)
    mask, found = rule.sample(roles.step(), list(prompts), noise, roles.device)
    plain: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(chain / folder)
    ).eval()
    for i, prompt in enumerate(prompts):
        kept = found.completion_ids[i][found.mask[i]]
        assert not {1, 1026} & set(kept[:-1].tolist()) and kept.max() < 1028
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + kept.tolist()])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits[:, :1028].log_softmax(-1).gather(1, kept[:, None])[:, 0]
        torch.testing.assert_close(found.logprobs[i][: len(kept)], logprobs, rtol=0, atol=1e-4)


def test_fine_tuning_goes_on_from_such_an_adapter_with_its_tokens_and_an_end_of_turn(
    chain: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chain / "more" / "adapter")
    assert len(tokenizer) == 1028 and "<|note|>" in tokenizer.chat_template
    assert json.loads((chain / "more" / "run.json").read_text())["data"]["stop_id"] == 1026


def test_scores_are_plain_pefts_of_texts_closed_as_in_training(chain: Path) -> None:
    base, folder = str(chain / "base"), chain / "reward" / "adapter"
    tokenizer = load_tokenizer(str(chain / "sft"), base=base)
    facts = json.loads((folder / "toolkit.json").read_text())
    assert facts["ends_with"] == "<|endoftext|>"
    reading = reading_of(folder, tokenizer)
    roles = Roles(load_base(base, "fp32"), reward_adapter=folder, reading=reading)
    plain: Any = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), str(folder)
    ).eval()
    plain.config.pad_token_id = None
    prompts, _ = read_prompts(chain / "prompts.jsonl", tokenizer, 128, limit=6)
    kept = [[40 + i, 50 + i, 60] for i in range(6)]
    asked = TokenCompletions(prompts, tokenizer, kept, actors=roles, batch_size=4)
    found = RewardAdapter()(asked).tolist()
    for value, prompt, completion in zip(found, prompts, kept, strict=True):
        with torch.no_grad():
            raw = plain(torch.tensor([prompt + completion + [1]])).logits.item()
        assert value == pytest.approx(facts["gain"] * raw + facts["bias"], abs=1e-4)


def test_judging_the_same_samples_again_gives_the_same_scores(chain: Path) -> None:
    before, after = (
        [row["scores"] for _, row in read_jsonl(chain / name / "samples.jsonl")]
        for name in ("evaluation", "again")
    )
    assert before == [
        {
            judge: {name: pytest.approx(value, abs=1e-5) for name, value in of.items()}
            for judge, of in row.items()
        }
        for row in after
    ]


def test_the_policy_is_staged_with_its_own_tokenizer_and_its_lines_give_its_numbers(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the Hub itself, which cannot be asked here: the gate has run the card's lines."""
    for adapter, name in (("ppo/adapters/policy", "policy"), ("reward/adapter", "reward")):
        code = call(
            recipe("publish").main,
            [
                "--adapter",
                str(chain / adapter),
                "--repo_id",
                f"me/{name}",
                "--base_model_id",
                "me/base",
                "--license",
                "apache-2.0",
                "--output_dir",
                str(chain / f"staged-{name}"),
                "--dry_run",
            ],
        )
        said = capsys.readouterr().out
        assert "gate: loaded in a clean process by the card's lines" in said
        refusals = [line for line in said.splitlines() if line.startswith("would be refused")]
        assert code == 2 and len(refusals) == 1 and "the Hub was not asked" in refusals[0]
    staged = AutoTokenizer.from_pretrained(chain / "staged-policy" / "me--policy")
    assert len(staged) == 1028 and "<|note|>" in staged.chat_template
    facts = json.loads((chain / "staged-reward" / "me--reward" / "toolkit.json").read_text())
    assert facts["ends_with"] == "<|endoftext|>"
