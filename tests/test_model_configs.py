"""The settings for public models are read, fit the cards that they name, and run on small models.

The public config.json of each model is in ``model_configs``. A small model has its structure: the
same class and kinds of layers, and the family's special tokens and chat template.
"""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import trl
import yaml
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.cli import bind, call, recipe
from toolkit.data.chat import read_chat
from toolkit.models.cards import room_of
from toolkit.models.from_arguments import base_of, lora_of
from toolkit.models.loading import load_tokenizer
from toolkit.models.reading import reading_of
from toolkit.models.roles import Roles
from toolkit.training.ppo.config import PPOConfig

ROOT = Path(__file__).parent.parent
PUBLIC = ROOT / "tests" / "model_configs"
CONFIGS = ROOT / "recipes" / "configs"

# What the Hub shows for each model's safetensors.
PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "smollm3-3b": 3_075_098_624,
    "gemma-3-4b-it": 4_300_079_472,
}
STAGES = ("sample", "reward", "ppo", "evaluate")
FILES = [(name, stage) for name in PARAMETERS for stage in STAGES]
CARDS = [16, 24, 48, 80]


@pytest.fixture(scope="module")
def planner() -> ModuleType:
    """benchmarks/model_configs.py."""
    path = ROOT / "benchmarks" / "model_configs.py"
    spec = importlib.util.spec_from_file_location("model_configs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values_of(name: str, stage: str, *words: str) -> dict[str, Any]:
    """All flags of a stage by name, as its recipe reads them from the config and these words."""
    told = ["--config", str(CONFIGS / name / f"{stage}.yaml"), *words]
    if stage in ("reward", "ppo"):
        told += ["--use_cpu"]  # bf16 is refused where there is no GPU
    given = bind(recipe(stage).main, told)
    return {key: value for part in given for key, value in vars(part).items()}


# The public configs.


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_public_config_makes_a_model_of_the_public_size(name: str) -> None:
    config = AutoConfig.from_pretrained(PUBLIC / name)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


def test_the_readme_names_every_public_config_its_size_and_its_model() -> None:
    table = (PUBLIC / "README.md").read_text(encoding="utf-8").splitlines()

    assert {folder.name for folder in PUBLIC.iterdir() if folder.is_dir()} == set(PARAMETERS)
    for name, count in PARAMETERS.items():
        model = values_of(name, "sample")["model_name_or_path"]
        assert f"| `{name}` | {model} | {count:,} |" in table


def test_what_is_unlike_llama_is_in_the_public_configs() -> None:
    smollm = AutoConfig.from_pretrained(PUBLIC / "smollm3-3b")
    gemma = AutoConfig.from_pretrained(PUBLIC / "gemma-3-4b-it").get_text_config()

    without_rotary = [i for i, rotary in enumerate(smollm.no_rope_layers) if not rotary]
    assert without_rotary == list(range(3, 36, 4))
    assert gemma.layer_types.count("sliding_attention") == 29
    assert gemma.layer_types[5::6] == ["full_attention"] * 5
    assert gemma.sliding_window == 1024


# What the settings say.


@pytest.mark.parametrize(("name", "stage"), FILES)
def test_each_row_is_understood_and_fits_its_card(
    planner: ModuleType, name: str, stage: str
) -> None:
    path = CONFIGS / name / f"{stage}.yaml"
    assert "Never run on a GPU." in path.read_text(encoding="utf-8").splitlines()[0]

    rows = planner.rows_of(path)
    assert [row.card for row in rows] == CARDS
    assert rows[0].words == ()  # the file is written for the smallest card
    for row in rows:
        values_of(name, stage, *row.words)
        assert 0 < row.gib < room_of(f"{row.card}GB").usable / (1 << 30)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_card_changes_no_more_than_memory(planner: ModuleType, name: str) -> None:
    free = {"precision", "batch_size", "local_rollout_forward_batch_size"}
    split = {"per_device_train_batch_size", "gradient_accumulation_steps"}
    precisions: dict[int, set[str]] = {card: set() for card in CARDS}

    for stage in STAGES:
        written = values_of(name, stage)
        for row in planner.rows_of(CONFIGS / name / f"{stage}.yaml"):
            values = values_of(name, stage, *row.words)
            precisions[row.card].add(values["precision"])

            assert {word[2:] for word in row.words if word.startswith("--")} <= free | split
            if stage in ("reward", "ppo"):
                batches = [
                    v["per_device_train_batch_size"] * v["gradient_accumulation_steps"]
                    for v in (written, values)
                ]
                assert batches[0] == batches[1]

    assert all(len(said) == 1 for said in precisions.values())


@pytest.mark.parametrize("name", PARAMETERS)
def test_all_stages_sample_and_render_alike(name: str) -> None:
    alike = (
        "model_name_or_path", "chat_template", "chat_template_kwargs", "response_length",
        "temperature", "stop_token", "max_prompt_length", "truncate_token", "lora_r",
    )  # fmt: skip
    stages = [values_of(name, stage) for stage in STAGES]

    for key in alike:
        assert len({str(values[key]) for values in stages if key in values}) == 1

    sample, reward, ppo, evaluate = stages
    assert reward["max_length"] >= reward["max_prompt_length"] + reward["response_length"]
    assert ppo["prompts"] == sample["prompts"] != evaluate["prompts"]
    assert ppo["reward_adapter"] == evaluate["reward_adapter"] == f"{reward['output_dir']}/adapter"
    assert evaluate["adapter"] == f"{ppo['output_dir']}/adapters/policy"


def test_the_page_has_the_same_peaks_as_the_files(planner: ModuleType) -> None:
    page = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")
    table = page.partition("<!-- memory -->")[2].partition("<!-- end -->")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]

    assert {row[0].strip() for row in rows} == set(PARAMETERS)
    for row in rows:
        shipped = planner.rows_of(CONFIGS / row[0].strip() / "ppo.yaml")
        assert [float(cell) for cell in row[-4:]] == [each.gib for each in shipped]
        held, *phases = (float(cell) for cell in row[1:5])
        assert held + max(phases) == pytest.approx(shipped[1].gib, abs=0.11)


def test_an_update_of_ppo_computes_as_many_operations_as_by_hand(planner: ModuleType) -> None:
    path = CONFIGS / "llama-3.1-8b-instruct" / "ppo.yaml"
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    texts, tokens = 64, 512

    # In 4 epochs policy and value pass forward, forward again and back; before them, prompt,
    # reference, reward model and value forward once.
    passes = 4 * 2 * 3 * tokens + 256 + 3 * tokens
    operations = 2 * 32 * layer * texts * passes
    _, seconds = planner.least_times(path, planner.rows_of(path)[3], 1e12, 1e15)

    assert seconds == pytest.approx(operations / 0.4e15)


# One row of each model and of each kind of stage; benchmarks/model_configs.py plans all 96.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "row"),
    [(name, "ppo", 0) for name in PARAMETERS]
    + [("qwen3-8b", "ppo", 1), ("qwen3-8b", "reward", 3), ("qwen3-4b", "evaluate", 1)],
)
def test_the_memory_in_the_table_is_the_plans(
    planner: ModuleType, name: str, stage: str, row: int
) -> None:
    path = CONFIGS / name / f"{stage}.yaml"
    said = planner.rows_of(path)[row]

    now = planner.planned(path, said.words)

    assert said.gib == pytest.approx(now, abs=0.051), "run benchmarks/model_configs.py --write"


# Small models of the same families.

SMALL = {
    "vocab_size": 1088, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
}  # fmt: skip
# Enough layers for each kind: every fourth of SmolLM3 has no rotary embedding, every sixth of
# Gemma 3 no window.
LAYERS = {"qwen3": 2, "llama": 2, "smollm3": 4, "gemma3": 6}
SPECIAL = {
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "other": "<|im_start|>"},
    "llama": {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "first": "<|end_of_text|>",
        "second": "<|eom_id|>", "third": "<|start_header_id|>", "fourth": "<|end_header_id|>",
    },
    "smollm3": {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "other": "<|im_start|>"},
    "gemma3": {
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
        "first": "<start_of_turn>", "second": "<end_of_turn>",
    },
}  # fmt: skip
# The end tokens of each model's generation_config.json.
ENDS = {
    "qwen3": ("<|im_end|>", "<|endoftext|>"),
    "llama": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "smollm3": ("<|im_end|>",),
    "gemma3": ("<eos>", "<end_of_turn>"),
}
# TRL ships three of the templates. This one stands in for SmolLM3's, with its header.
TEMPLATES = {"qwen3": "qwen3.jinja", "llama": "llama3_1.jinja", "gemma3": "gemma3.jinja"}
SMOLLM3 = (
    "{% set mode = '/think' if enable_thinking | default(true) else '/no_think' %}"
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ mode }}\n\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and mode == '/no_think' %}<think>\n\n</think>\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if mode == '/no_think' %}<think>\n\n</think>\n{% endif %}{% endif %}"
)


def make_small(name: str, demo_model: str, folder: Path) -> None:
    """Write a model with random weights that has a public model's structure and small sizes."""
    public = json.loads((PUBLIC / name / "config.json").read_text(encoding="utf-8"))
    family = public["model_type"]

    # The tokenizer is the embedded model's, with the family's special tokens.
    shutil.copytree(demo_model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(dict.fromkeys(SPECIAL[family].values())))
    tokenizer.save(str(folder / "tokenizer.json"))
    own = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    own |= {key: token for key, token in SPECIAL[family].items() if key.endswith("_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    template = SMOLLM3
    if family in TEMPLATES:
        shipped = Path(trl.__file__).parent / "chat_templates" / TEMPLATES[family]
        template = shipped.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    # The model.
    layers = LAYERS[family]
    ends = [tokenizer.token_to_id(token) for token in ENDS[family]]
    text = public.get("text_config", public)
    text |= SMALL | {"num_hidden_layers": layers, "eos_token_id": ends[0], "pad_token_id": None}
    text |= {key: text[key][:layers] for key in ("no_rope_layers", "layer_types") if key in text}
    text["bos_token_id"] = tokenizer.token_to_id(SPECIAL[family].get("bos_token", "")) or None
    public |= {"eos_token_id": ends[0], "torch_dtype": "float32"}
    if family == "gemma3":
        text["sliding_window"] = 8
        public["vision_config"] |= {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28,
        }  # fmt: skip
        public |= {"mm_tokens_per_image": 4, "image_token_index": 1080}
        public |= {"boi_token_index": 1081, "eoi_token_index": 1082}
    (folder / "config.json").write_text(json.dumps(public), encoding="utf-8")

    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForImageTextToText if family == "gemma3" else AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(config)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, demo_model: str) -> Iterator[Any]:
    """Gives the folder of a small model by the name of the public one."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("small") / name
            make_small(name, demo_model, made[name])
        return made[name]

    yield folder


@pytest.mark.parametrize("name", PARAMETERS)
def test_completions_end_where_the_settings_say(small: Any, name: str) -> None:
    path = CONFIGS / name / "ppo.yaml"
    line = next(x for x in path.read_text().splitlines() if x.startswith("stop_token:"))
    said = set(re.findall(r"<[^>]+>", line.partition("#")[2]))
    family = AutoConfig.from_pretrained(PUBLIC / name).model_type
    assert said == set(ENDS[family])

    tokenizer = load_tokenizer(str(small(name)))
    told = ["--config", str(path), "--use_cpu"]
    config = next(p for p in bind(recipe("ppo").main, told) if isinstance(p, PPOConfig))
    rule = config.rule(tokenizer)

    assert set(tokenizer.convert_ids_to_tokens(list(rule.stop_ids))) == said


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_template_reads_what_the_settings_tell_it(small: Any, name: str) -> None:
    tokenizer = load_tokenizer(str(small(name)))
    kwargs = values_of(name, "ppo")["chat_template_kwargs"]
    chat, asked = read_chat(None, kwargs), [{"role": "user", "content": "Hello."}]

    family = AutoConfig.from_pretrained(PUBLIC / name).model_type
    notes = chat.notes(tokenizer, asked)
    assert [line for line in notes if "today's date" not in line] == []
    assert bool(notes) == (family == "smollm3")

    thinks = family in ("qwen3", "smollm3")
    assert (kwargs == {"enable_thinking": False}) == thinks
    text = chat.render(tokenizer, asked, ask=True)
    assert text.rstrip().endswith("</think>") == thinks


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("precision", ["4bit", "bf16"])
def test_the_roles_resolve_on_a_small_model_of_the_family(
    small: Any, name: str, precision: str
) -> None:
    words = ["--model_name_or_path", str(small(name)), "--precision", precision, "--use_cpu"]
    told = ["--config", str(CONFIGS / name / "ppo.yaml"), *words]
    model_args, lora, _, _, config = bind(recipe("ppo").main, told)
    assert isinstance(model_args, ModelArguments) and isinstance(lora, LoraArguments)

    roles = Roles(
        base_of(model_args),
        lora_of(lora, "CAUSAL_LM"),
        value=config.value_role,
        autocast_dtype=torch.bfloat16,
    )

    # Every linear layer of the language model has an adapter for the policy, and no other part.
    adapted = {key.partition(".lora_A")[0] for key, _ in roles.trainable() if ".lora_A." in key}
    policy = {key for key, _ in roles.trainable() if ".lora_A.policy" in key}
    layers = LAYERS[AutoConfig.from_pretrained(PUBLIC / name).model_type]
    assert len(policy) == 7 * layers == len(adapted)
    assert not any("vision" in key for key in adapted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-0.6b", "gemma-3-4b-it"])  # the others differ less
def test_the_stages_run_one_after_the_other_with_the_shipped_settings(
    small: Any, name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("outputs") / name
    out.mkdir(parents=True)
    lines = (root / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:72]
    rows = [json.dumps({"messages": [{"role": "user", "content": json.loads(line)["prompt"]}]})
            for line in lines]  # fmt: skip
    (out / "prompts.jsonl").write_text("\n".join(rows[:64]) + "\n", encoding="utf-8")
    (out / "heldout.jsonl").write_text("\n".join(rows[64:]) + "\n", encoding="utf-8")

    def run(stage: str, *words: str) -> None:
        shipped = ["--config", str(CONFIGS / name / f"{stage}.yaml")]
        base = ["--model_name_or_path", str(small(name)), "--response_length", "12"]
        call(recipe(stage).main, [*shipped, *base, *words])

    on_cpu = ["--use_cpu", "--disable_tqdm", "true", "--max_prompt_length", "128"]
    run("sample")
    labels = ["--samples", str(out / "samples.jsonl"), "--output", str(out / "comparisons.jsonl")]
    lexicon = ["--lexicon", str(root / "data" / "lexicon.txt"), "--noise", "0.5"]
    call(recipe("label").main, [*labels, *lexicon])
    reward = ["--eval_rows", "12", "--folds", "0", "--normalize_samples", "16"]
    run("reward", *on_cpu, *reward, "--max_length", "256")
    run("ppo", *on_cpu, "--total_episodes", "64", "--allow_untrusted_reward")
    run("evaluate")

    # Each stage saw what the settings say.
    told = yaml.safe_load((CONFIGS / name / "ppo.yaml").read_text(encoding="utf-8"))
    reading = reading_of(out / "reward" / "adapter", load_tokenizer(str(small(name))))
    assert reading.trained_on == "messages"
    assert reading.told == told.get("chat_template_kwargs", {})
    log = [json.loads(line) for line in (out / "ppo" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 1 and log[0]["objective/kl"] == pytest.approx(0, abs=0.05)
    assert json.loads((out / "evaluation" / "evaluation.json").read_text())["contenders"]
    assert os.path.isfile(out / "ppo" / "adapters" / "policy" / "adapter_model.safetensors")
