"""The doctor: a plan of any family, refusals by name, and canaries whatever becomes of the plan."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, Gemma2Config, LlamaConfig, MixtralConfig, PreTrainedConfig

from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.models import cards, library_checks, memory
from toolkit.models.cards import Room

doctor = recipe("doctor")
SMALL: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True)
def one_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_checks, "LIBRARY_CHECKS", {"a canary": lambda: None})


def words(folder: Path, config: PreTrainedConfig, demo_model: str, *more: str) -> list[str]:
    """A command line for a model of which there is no more than a config and a name of weights."""
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    for file in Path(demo_model).glob("*token*"):
        shutil.copy(file, folder)
    return [
        "--model_name_or_path",
        str(folder),
        "--use_cpu",
        "true",
        "--lexicon",
        "lexicon.txt",
        *more,
    ]


def test_a_family_s_notes_are_shown(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=30.0)
    assert call(doctor.main, words(tmp_path, config, demo_model)) == 0
    shown = capsys.readouterr().out
    assert "gemma2: its logits are capped at 30" in shown
    assert "ok    a canary" in shown and "estimated" not in shown


def test_a_reward_model_beside_the_base_is_said_to_be_left_out_of_the_plan(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = words(tmp_path, Gemma2Config(**SMALL, head_dim=8), demo_model)
    assert call(doctor.main, told) == 0
    assert "not counted here" not in capsys.readouterr().out
    assert call(doctor.main, [*told, "--reward_model", "your-org/judge"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The reward model your-org/judge is loaded beside this. Its memory is not" in shown


def test_a_quantized_checkpoint_is_said_or_refused(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=4)
    held = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config.quantization_config = held
    line = words(tmp_path, config, demo_model, "--precision", "4bit")
    assert call(doctor.main, line) == 0
    shown = capsys.readouterr().out
    assert "the checkpoint is in NF4 (bitsandbytes): kept as it is" in shown
    config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(InputError, match="awq"):
        call(doctor.main, words(tmp_path, config, demo_model))
    assert capsys.readouterr().out == ""


def test_a_model_that_cannot_be_used_is_refused_before_anything(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="reads in both directions"):
        call(doctor.main, words(tmp_path, BertConfig(), demo_model))
    assert capsys.readouterr().out == ""


def test_of_a_mixture_the_share_in_four_bits_is_said(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=4)
    line = words(tmp_path, config, demo_model, "--precision")
    assert call(doctor.main, [*line, "4bit"]) == 0
    assert "of the weights are in 4 bits" in capsys.readouterr().out
    assert call(doctor.main, [*line, "fp32"]) == 0
    assert "in 4 bits" not in capsys.readouterr().out


def test_without_a_plan_the_canaries_still_sing(
    demo_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(memory, "_base", broken)
    line = ["--model_name_or_path", demo_model, "--use_cpu", "true", "--lexicon", "lexicon.txt"]
    assert call(doctor.main, line) == 0
    shown = capsys.readouterr().out
    assert "the memory plan failed: no such thing at all\n" in shown
    assert "ok    a canary" in shown
    monkeypatch.setattr(library_checks, "LIBRARY_CHECKS", {"a canary": lambda: "silent"})
    assert call(doctor.main, line) == 1


@pytest.mark.parametrize("counted", [True, False])
def test_only_a_plan_that_was_counted_decides(
    counted: bool,
    demo_model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no storage")

    monkeypatch.setattr(cards, "free_room", lambda device: Room("a toy", 1 << 20))
    if not counted:
        monkeypatch.setattr(memory, "count_kept", broken)
    line = ["--model_name_or_path", demo_model, "--use_cpu", "true", "--lexicon", "lexicon.txt"]
    assert call(doctor.main, line) == int(counted)
    shown = capsys.readouterr().out
    assert "this does not fit" in shown and "ok    a canary" in shown
    assert ("estimated from sizes (no storage)" in shown) is not counted


LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128_256,
    max_position_embeddings=8192,
)


def planned_for(
    card: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str, dict[str, Any]]:
    """The doctor's exit code, its text, and the flags of the command that it proposes."""
    LLAMA_8B.save_pretrained(folder)
    line = ["--model_name_or_path", str(folder), "--gpu", card, *more]
    code = call(doctor.main, line)
    shown = capsys.readouterr().out
    commands = [row for row in shown.splitlines() if row.startswith("next: ")]
    words = shlex.split(commands[0])[1:] if commands else []
    flags = {w[2:]: v for w, v in zip(words, words[1:], strict=False) if w.startswith("--")}
    return code, shown, flags


def test_eight_billion_parameters_fit_24_gb_by_their_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No weights, no tokenizer, no GPU; the command says all that was chosen."""
    sizes = "--prompt_length", "512", "--response_length", "256"
    code, shown, flags = planned_for("24GB", tmp_path, capsys, *sizes)
    assert code == 0 and "this fits" in shown and "the folder has no weights" in shown
    assert flags["bf16"] == flags["gradient_checkpointing"] == "true"
    micro, steps = (
        int(flags[name]) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    assert micro > 1 and micro * steps == 64
    assert flags["response_length"] == "256" and "gpu" not in flags and "prompt_length" not in flags

    # The command means what was planned: told these flags, the doctor chooses nothing and agrees.
    told = [word for name in OF_THE_PLAN for word in (f"--{name}", flags[name])]
    code, again, repeated = planned_for("24GB", tmp_path, capsys, *sizes, *told)
    assert code == 0 and "chosen for" not in again and repeated == flags


OF_THE_PLAN = (
    "bf16",
    "gradient_checkpointing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "local_rollout_forward_batch_size",
    "plain_scales",
)


def test_what_does_not_fit_a_card_exits_1_and_says_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, flags = planned_for("24GB", tmp_path, capsys, "--precision", "fp32")
    assert code == 1 and "this does not fit" in shown and flags["precision"] == "4bit"
    code, shown, flags = planned_for("3070", tmp_path, capsys)
    assert code == 1 and "no smaller pass fits" in shown and not flags


def test_a_card_that_nobody_knows_is_refused_and_so_is_a_cpu_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no card is known as my-card"):
        planned_for("my-card", tmp_path, capsys)
    with pytest.raises(InputError, match="use_cpu"):
        planned_for("4090", tmp_path, capsys, "--use_cpu", "true")


def test_on_a_cpu_checkpointing_is_the_first_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "free_room", lambda device: Room("CPU", 16 * 2**30))
    LLAMA_8B.save_pretrained(tmp_path)
    assert call(doctor.main, ["--model_name_or_path", str(tmp_path), "--use_cpu", "true"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "this does not fit; --gradient_checkpointing true alone would need" in shown
    assert "settings that fit: --gradient_checkpointing true" in shown
