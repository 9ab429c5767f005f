"""The pretraining mix: token means, both gradients added, rows in order, and nothing when off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.data.plain_text import text_rows
from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.loading import load_tokenizer
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.pretraining import (
    PretrainingText,
    add_gradients,
    as_pretraining_text,
    text_loss,
)

Make = Callable[..., Any]
ROOT = Path(__file__).parents[3]
PROMPTS = ROOT / "data" / "prompts.heldout.jsonl"


def texts(demo_model: str, tmp_path: Path, count: int = 24, length: int = 20) -> list[list[int]]:
    """Rows of text for the embedded model: two prompts in a row, of unequal length."""
    lines = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()[: 3 * count]]
    file = tmp_path / "text.jsonl"
    pairs = [
        a + (b if i % 3 else "") for i, (a, b) in enumerate(zip(lines[:-1], lines[1:], strict=True))
    ]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in pairs[:count]))
    return text_rows(str(file), load_tokenizer(demo_model), length, "--ptx_data").rows


def test_the_loss_is_a_mean_over_tokens_and_not_over_rows() -> None:
    """Losses (1, 2, 3) and (.5, .5): 7 / 5 = 1.4; the mean of the rows' means would be 1.25."""
    nll = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    assert text_loss(-nll, mask, 5).item() == pytest.approx(1.4)
    parts = [text_loss(-nll[i : i + 1], mask[i : i + 1], 5).item() for i in (0, 1)]
    assert sum(parts) == pytest.approx(1.4)  # so micro-batches and processes may be added up


def test_the_texts_gradient_is_added_with_instructgpts_coefficient() -> None:
    """By hand, with arXiv 2203.02155's 27.8: .1 + 27.8 * .01 = .378, and so on."""
    ppo, text = torch.tensor([0.1, -0.2, 0.05]), torch.tensor([0.01, 0.02, -0.03])
    expected = torch.tensor([0.378, 0.356, -0.784])
    torch.testing.assert_close(add_gradients(ppo, text, 27.8), expected)
    torch.testing.assert_close(add_gradients(None, text, 27.8), 27.8 * text)


def test_an_update_takes_its_rows_in_order_and_shares_them_over_the_steps() -> None:
    """512 episodes at 8 rows each are 4,096 rows; after the last row comes the first."""
    text = PretrainingText([[i, i] for i in range(5000)], 8)
    first = text.take(512, 16)
    assert [len(rows) for rows in first] == [256] * 16 and text.used == 4096
    assert [row[0] for rows in first for row in rows] == list(range(4096))
    second = [row[0] for rows in text.take(512, 3) for row in rows]
    assert second == [*range(4096, 5000), *range(4096 - 904)] and text.used == 8192

    uneven = PretrainingText([[i, i] for i in range(100)], 1)
    assert [len(rows) for rows in uneven.take(10, 4)] == [2, 3, 2, 3]


def test_coefficient_and_text_go_together(tmp_path: Path) -> None:
    def config(**kwargs: object) -> PPOConfig:
        return PPOConfig(output_dir=str(tmp_path), use_cpu=True, **kwargs)

    assert as_pretraining_text(None, config()) is None
    with pytest.raises(InputError, match="ptx_dataset is given, but ptx_coef is 0"):
        as_pretraining_text([[1, 2]], config())
    for rows in (None, []):
        with pytest.raises(InputError, match="ptx_coef needs text"):
            as_pretraining_text(rows, config(ptx_coef=0.1))
    with pytest.raises(InputError, match="row 1 has fewer than two tokens"):
        as_pretraining_text([[1, 2], [3]], config(ptx_coef=0.1))
    for name, value in (("ptx_data", "a.jsonl"), ("ptx_length", 9)):
        with pytest.raises(InputError, match=f"{name} is not used without ptx_coef"):
            config(**{name: value})
    with pytest.raises(InputError, match="fewer rows of text to an update than its 16 optimizer"):
        config(ptx_coef=0.1, ptx_ratio=1, per_device_train_batch_size=8, num_mini_batches=4)


def test_old_runs_resume_since_settings_that_are_off_are_not_noted(tmp_path: Path) -> None:
    off, on = (
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, ptx_coef=coef).identity()
        for coef in (0.0, 0.5)
    )
    assert not [name for name in off if name.startswith("ptx")]
    assert on["ptx_coef"] == 0.5 and not {"ptx_data", "ptx_length"} & on.keys()


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_a_step_has_ppos_gradient_and_that_of_plain_transformers_loss(
    demo_model: str, tmp_path: Path, new_trainer: Make, value: str
) -> None:
    """The loss of transformers' own model on the same rows, differentiated through peft's LoRA."""
    rows = texts(demo_model, tmp_path, 13)

    def gradients(name: str, **kwargs: Any) -> tuple[Any, dict[str, torch.Tensor], dict]:
        trainer = new_trainer(name, value=value, num_ppo_epochs=1, **kwargs)
        for key, p in trainer.model.named_parameters():
            if "lora_B" in key:
                generator = torch.Generator().manual_seed(len(key))
                p.data = 0.05 * torch.randn(p.shape, generator=generator)
        rollout = trainer.collect(1)
        credit = trainer.algorithm.credit(
            torch.linspace(-1, 1, 64).view(8, 8), rollout, trainer.ranks.total
        )
        text = trainer.text.take(8, 1)[0] if trainer.text else []
        stats = trainer._step(rollout, credit, torch.arange(8), text)
        return (
            trainer,
            {n: p.grad for n, p in trainer.model.trainable() if p.grad is not None},
            stats,
        )

    _, plain, _ = gradients("plain", learning_rate=0.0)
    trainer, mixed, stats = gradients(
        "mixed", learning_rate=0.0, ptx_coef=0.3, ptx_ratio=2, ptx_dataset=rows,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip

    taken = [*rows, *rows[:3]]  # 16 rows of 13
    ids, mask = pad(taken, 0)
    model = trainer.model.language_model("policy")
    logits = model(input_ids=ids, attention_mask=mask.long()).logits
    labels = ids.masked_fill(~mask, -100)
    loss = model.loss_function(logits, labels, vocab_size=model.config.vocab_size)
    known = [(n, p) for n, p in trainer.model.trainable() if ".policy." in n]
    found = torch.autograd.grad(loss, [p for _, p in known])

    assert stats["ptx/loss"] == pytest.approx(loss.item(), abs=1e-5)
    for (name, _), gradient in zip(known, found, strict=True):
        torch.testing.assert_close(mixed[name], plain[name] + 0.3 * gradient, atol=2e-6, rtol=1e-4)
    assert mixed.keys() == plain.keys()
    for name in plain.keys() - {name for name, _ in known}:  # the value's
        torch.testing.assert_close(mixed[name], plain[name], atol=1e-6, rtol=1e-4)

    def norm(parts: Any) -> float:
        return torch.cat([part.flatten() for part in parts]).norm().item()

    own = norm(plain[name] for name, _ in known)
    assert stats["ptx/ppo_gradient_norm"] == pytest.approx(own, rel=1e-4)
    assert stats["ptx/gradient_norm"] == pytest.approx(0.3 * norm(found), rel=1e-4)
    assert stats["ptx/gradient_ratio"] == pytest.approx(0.3 * norm(found) / own, rel=1e-4)


@pytest.mark.slow
def test_a_stopped_run_with_text_goes_on_to_the_same_bits_and_without_it_logs_none(
    demo_model: str, tmp_path: Path, new_trainer: Make
) -> None:
    options: dict[str, Any] = {
        "total_episodes": 24,
        "ptx_coef": 0.1,
        "ptx_ratio": 3,
        "ptx_dataset": texts(demo_model, tmp_path, 17),
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
    }
    whole = new_trainer("whole", **options)
    rows = whole.train()
    assert whole.text.used == 72  # 24 episodes of 3 rows
    assert all(row["ptx/loss"] > 0 and row["ptx/gradient_ratio"] > 0 for row in rows)
    new_trainer("parts", stop_at_update=1, save_steps=1, **options).train()
    again = new_trainer("parts", resume="auto", **options)
    assert again.train() == rows
    weights = dict(whole.model.trainable())
    assert all(torch.equal(p, weights[name]) for name, p in again.model.trainable())

    other = options | {"ptx_dataset": options["ptx_dataset"][1:]}
    with pytest.raises(InputError, match="ptx_rows"):
        new_trainer("parts", resume="auto", **other).train()
    without = new_trainer("without", total_episodes=8).train()
    assert not [name for name in without[0] if name.startswith("ptx")]


@pytest.mark.slow
def test_text_alone_lowers_its_own_loss_as_seen_by_plain_transformers(
    demo_model: str, tmp_path: Path, new_trainer: Make
) -> None:
    rows = texts(demo_model, tmp_path, 8)
    trainer = new_trainer(
        "text", ptx_coef=1.0, ptx_ratio=1, ptx_dataset=rows, learning_rate=3e-3, total_episodes=32
    )
    log = trainer.train()
    assert log[-1]["ptx/loss"] < log[0]["ptx/loss"] - 0.05
