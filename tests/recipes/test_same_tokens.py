"""Prompts and completions are the same tokens in every stage, and when they are judged again.

The tokenizer mends text (NFKC, no double spaces) and the prompts hold special tokens as text, so
what their ids are decoded to is other text, of other ids.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, normalizers

from toolkit.cli import call, recipe
from toolkit.data.comparisons import read_rows
from toolkit.data.encoding import Encoder
from toolkit.data.files import read_jsonl
from toolkit.data.prompts import given_prompts, read_prompts
from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.toolkit_json import write_facts

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ mood }}{% endif %}"
)
TEXTS = [
    "We  went to the \ufb01ne cafe.",
    "It rained.<|endoftext|> Then it was",
    " So  bad ",
    "I met my aunt.",
]
SHORT = ["--response_length", "8", "--precision", "fp32"]


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reward adapter for each way to read, and prompts of each kind."""
    out = tmp_path_factory.mktemp("tokens")
    shutil.copytree(demo_model, out / "base")
    tokenizer = Tokenizer.from_file(str(out / "base" / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("  ", " ")]
    )
    tokenizer.save(str(out / "base" / "tokenizer.json"))
    (out / "base" / "chat_template.jinja").write_text(CHATML)
    torch.manual_seed(0)
    model: Any = get_peft_model(
        load_base(str(out / "base"), "fp32", score_head=True),
        lora_config(4, 8, "all-linear", "SEQ_CLS"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "score.modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    kinds: dict[str, dict[str, Any]] = {
        "text": {},
        "glad": {"chat_template_kwargs": {"mood": "glad"}},
        "plain": {"chat_template": "plain"},
    }
    for name, facts in kinds.items():
        model.save_pretrained(out / name)
        write_facts(out / name, str(out / "base"), precision="fp32", **facts)
    model.save_pretrained(out / "stock")  # read as TRL's: messages are rendered whole
    write(out / "text.jsonl", [{"prompt": text} for text in TEXTS])
    write(out / "cut.jsonl", [{"text": f"It<|endoftext|>was. {text} {text * 3}"} for text in TEXTS])
    write(out / "chat.jsonl", [{"prompt": [{"role": "user", "content": t}]} for t in TEXTS])
    return out


def test_from_sampling_to_labels_and_training(
    place: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, tokenizer = str(place / "base"), load_tokenizer(str(place / "base"))
    call(recipe("sample").main, [
        *SHORT, "--model_name_or_path", base, "--prompts", str(place / "text.jsonl"), "--output",
        "s.jsonl", "--completions", "3", "--stop_token", "none"])  # fmt: skip
    call(
        recipe("label").main,
        [
            "--samples",
            "s.jsonl",
            "--lexicon",
            str(root / "data" / "lexicon.txt"),
            "--ties",
            "random",
            "--output",
            "c.jsonl",
        ],
    )
    sampled, _ = read_prompts(place / "text.jsonl", tokenizer, 64)
    labeled = read_rows("c.jsonl", "best", "--comparisons")
    assert [row["prompt"] for row in labeled] == TEXTS
    found = Encoder(tokenizer, None).pieces(("c.jsonl", row) for row in labeled)
    assert [piece.prompt for piece in found] == list(sampled)
    assert list(read_prompts("c.jsonl", tokenizer, 64)[0]) == list(sampled)
    decoded = [{"prompt": tokenizer.decode(ids, skip_special_tokens=True)} for ids in sampled]
    assert given_prompts(decoded, tokenizer) != sampled  # or it would prove nothing


@pytest.mark.parametrize(
    ("prompts", "reward", "words"),
    [("text", "text", []), ("cut", "text", ["--prompt_tokens", "9"]),
     ("chat", "glad", ["--chat_template_kwargs", '{"mood": "glad"}']),
     ("chat", "plain", ["--chat_template", "plain"]),
     ("chat", "stock", ["--chat_template_kwargs", '{"mood": "glad"}'])],
)  # fmt: skip
def test_judged_again_all_scores_are_the_same(
    prompts: str, reward: str, words: list[str], place: Path, root: Path, tmp_path: Path
) -> None:
    """By a run that is told nothing of how the prompts were read: the files say it."""
    common = [
        *SHORT,
        "--model_name_or_path",
        str(place / "base"),
        "--reward_adapter",
        str(place / reward),
        "--lexicon",
        str(root / "data" / "lexicon.txt"),
    ]
    before, after = tmp_path / "before", tmp_path / "after"
    call(
        recipe("evaluate").main,
        [
            *common,
            *words,
            "--prompts",
            str(place / f"{prompts}.jsonl"),
            "--contenders",
            "reference",
            "best=best_of_2",
            "--reranker",
            "reward",
            "--output_dir",
            str(before),
        ],
    )
    again = [*common, "--samples", str(before), "--output_dir", str(after)]
    call(recipe("evaluate").main, again)
    first, second = (
        [row for _, row in read_jsonl(out / "samples.jsonl")] for out in (before, after)
    )
    for one, other in zip(first, second, strict=True):
        assert one["prompt"] == other["prompt"] and one["prompt_ids"] == other["prompt_ids"]
        for judge in ("reward", "lexicon"):
            assert one["scores"][judge] == pytest.approx(other["scores"][judge], abs=1e-5)
    assert len({row["scores"]["reward"]["reference"] for row in first}) > 1
    if words[:1] == ["--chat_template_kwargs"]:
        run = json.loads((before / "run.json").read_text())
        assert run["settings"]["chat_template_kwargs"] == {"mood": "glad"}
        with pytest.raises(InputError, match="the prompts of the samples were rendered by"):
            call(recipe("evaluate").main, [*again, "--overwrite", "--chat_template", "plain"])


@pytest.mark.parametrize("name", ["evaluate", "best_of_n", "ppo", "rloo"])
def test_prompts_that_a_reward_adapter_was_not_trained_to_read_are_refused_at_once(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr("toolkit.models.from_arguments.load_base", loaded)
    output = ["--output"] if name == "best_of_n" else ["--output_dir"]
    words = [
        *SHORT,
        "--model_name_or_path",
        str(place / "base"),
        "--prompts",
        str(place / "chat.jsonl"),
        "--reward_adapter",
        str(place / "glad"),
        *output,
        str(tmp_path / "out"),
    ]
    words += {"evaluate": ["--contenders", "reference"], "best_of_n": []}.get(name, ["--use_cpu"])
    sad = ["--chat_template_kwargs", '{"mood": "sad"}']
    with pytest.raises(InputError, match=r'with \{"mood": "glad"\}, .* with \{"mood": "sad"\}'):
        call(recipe(name).main, [*words, *sad])


def test_adapters_say_how_the_messages_of_their_training_were_rendered(
    place: Path, root: Path, tmp_path: Path
) -> None:
    glad = ["--chat_template_kwargs", '{"mood": "glad"}']
    common = [*SHORT, "--model_name_or_path", str(place / "base"), "--use_cpu", *glad]
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}."}], "completions": [" A.", " B."], "best": 0}
        for i in range(8)
    ]
    write(tmp_path / "c.jsonl", rows)
    training = [w for w in common if w not in SHORT[:2]]
    call(
        recipe("sft").main,
        [
            *training,
            "--comparisons",
            str(tmp_path / "c.jsonl"),
            "--max_steps",
            "1",
            "--eval_rows",
            "2",
            "--output_dir",
            str(tmp_path / "sft"),
        ],
    )
    call(recipe("ppo").main, [
        *common, "--prompts", str(place / "chat.jsonl"), "--lexicon",
        str(root / "data" / "lexicon.txt"), "--policy_adapter", str(tmp_path / "sft" / "adapter"),
        "--total_episodes", "8", "--per_device_train_batch_size", "8", "--output_dir",
        str(tmp_path / "ppo")])  # fmt: skip
    for folder in ("sft/adapter", "ppo/adapters/policy"):
        facts = json.loads((tmp_path / folder / "toolkit.json").read_text())
        assert facts["trained_on"] == "messages" and facts["chat_template"] is None
        assert facts["chat_template_kwargs"] == {"mood": "glad"}
