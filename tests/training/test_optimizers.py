"""Optimizers and schedules: what transformers' Trainer would make of the same arguments."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from toolkit.errors import InputError
from toolkit.maths.schedules import updates_between
from toolkit.training.optimizers import make_optimizer
from toolkit.training.ppo.config import PPOConfig

pytestmark = pytest.mark.slow  # trains


def config(**kwargs: Any) -> PPOConfig:
    return PPOConfig(output_dir="x", use_cpu=True, **kwargs)


def small_gpt2() -> GPT2LMHeadModel:
    """Biases, norms and an embedding, tied to the head."""
    shape = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 96, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()


@pytest.mark.parametrize(
    "optim",
    ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "lion_32bit",
     "adamw_bnb_8bit", "ademamix"],
)  # fmt: skip
def test_three_steps_move_the_weights_as_the_trainers_optimizer_does(
    optim: str, tmp_path: Path
) -> None:
    options = {"optim": optim, "learning_rate": 1e-2, "weight_decay": 0.1, "adam_epsilon": 1e-6}
    if optim == "sgd":
        options["optim_args"] = "momentum=0.9, nesterov=true"
    ours = small_gpt2()
    theirs = copy.deepcopy(ours)
    stock = TrainingArguments(str(tmp_path), use_cpu=True, **options)
    optimizers = [
        make_optimizer(config(**options), ours),
        Trainer(model=theirs, args=stock).create_optimizer(),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    start = small_gpt2().state_dict()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    assert not torch.equal(
        start["transformer.h.0.attn.c_attn.weight"], ours.transformer.h[0].attn.c_attn.weight
    )


def test_without_a_word_it_is_plain_adam_over_all_that_is_trained() -> None:
    model = small_gpt2()
    model.transformer.wte.weight.requires_grad_(False)
    optimizer = make_optimizer(config(learning_rate=2e-3), model)
    assert type(optimizer) is torch.optim.Adam and len(optimizer.param_groups) == 1
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(p) for p in model.parameters() if p.requires_grad]
    assert optimizer.defaults["lr"] == 2e-3 and optimizer.defaults["eps"] == 1e-5


def rates(new_trainer: Callable[..., Any], **kwargs: Any) -> list[float]:
    """The learning rates of ten updates, as parts of the highest."""
    highest = 2.0**-20
    options = {"total_episodes": 80, "learning_rate": highest, "num_ppo_epochs": 1}
    return [row["lr"] / highest for row in new_trainer(**(options | kwargs)).train()]


def test_cosine_with_warm_up_gives_the_textbook_rates(new_trainer: Callable[..., Any]) -> None:
    """Up in a line over the first 2 of 10 updates, then half a cosine down."""
    expected = [0.0, 0.5] + [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates(new_trainer, lr_scheduler_type="cosine", warmup_steps=2) == pytest.approx(expected)


def test_a_part_of_the_run_warms_up(new_trainer: Callable[..., Any]) -> None:
    """0.25 of 10 updates is 3, rounded up; the line down ends at 0 after the last."""
    expected = [0, 1 / 3, 2 / 3] + [1 - i / 7 for i in range(7)]
    assert rates(new_trainer, warmup_steps=0.25) == pytest.approx(expected)


def test_a_schedules_own_arguments_reach_it(new_trainer: Callable[..., Any]) -> None:
    """polynomial: (1 - i / 10) ^ 2 above the end of 0.2."""
    found = rates(
        new_trainer,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 2.0, "lr_end": 0.2 * 2.0**-20},
    )
    assert found == pytest.approx([0.2 + 0.8 * (1 - i / 10) ** 2 for i in range(10)])


def test_the_default_is_the_line_of_the_original_code(new_trainer: Callable[..., Any]) -> None:
    assert rates(new_trainer) == [1 - i / 10 for i in range(10)]
    assert rates(new_trainer, name="b", lr_scheduler_type="constant") == [1.0] * 10


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1},
        {"optim": "adafactor", "warmup_steps": 1},
        {"optim": "adamw_bnb_8bit"},
        {
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "lr_scheduler_type": "inverse_sqrt",
            "warmup_steps": 1,
        },
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_a_run_resumes_exactly_with_its_optimizer_and_schedule(
    new_trainer: Callable[..., Any], options: dict[str, Any]
) -> None:
    options = {"total_episodes": 32, "save_steps": 1, "learning_rate": 1e-2} | options
    whole = new_trainer(name="whole", **options)
    rows = whole.train()
    new_trainer(name="parts", stop_at_update=2, **options).train()
    rest = new_trainer(name="parts", resume="auto", **options)
    assert rest.train() == rows
    for (name, a), (_, b) in zip(whole.model.trainable(), rest.model.trainable(), strict=True):
        assert torch.equal(a, b), name


def test_a_schedule_of_ones_own_goes_on_where_it_stood(new_trainer: Callable[..., Any]) -> None:
    """The rate of the first update after a resume was the schedule's first once more."""

    def trainer(name: str, **kwargs: Any) -> Any:
        made = new_trainer(name=name, total_episodes=32, save_steps=1, **kwargs)
        optimizer = torch.optim.SGD(made.parameters, lr=0.5)
        made.optimizer = optimizer
        made.lr_scheduler = LambdaLR(optimizer, lambda done: 1 / (1 + done))
        return made

    rows = trainer("whole").train()
    trainer("parts", stop_at_update=2).train()
    assert trainer("parts", resume="auto").train() == rows


def test_optimizers_that_cannot_train_these_models_are_refused(
    new_trainer: Callable[..., Any],
) -> None:
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    frozen = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(InputError, match="1 of 1 parameters .* belong to no model"):
        new_trainer(optimizers=(stranger, None))
    with pytest.raises(InputError, match="the schedule has no optimizer"):
        new_trainer(optimizers=(None, LambdaLR(frozen, lambda i: 1.0)))
    with pytest.raises(InputError, match="needs a metric"):
        new_trainer(optimizers=(frozen, ReduceLROnPlateau(frozen)))


def test_a_part_of_the_run_is_rounded_up_to_updates() -> None:
    assert [updates_between(0.25, n) for n in (8, 10, 1)] == [2, 3, 1]
    assert updates_between(20, 10) == 20


def test_checkpoints_come_every_quarter_of_the_run_and_all_are_kept(
    new_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    new_trainer(total_episodes=64, save_steps=0.25, save_total_limit=None, num_ppo_epochs=1).train()
    found = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert found == [f"checkpoint-{n:06d}" for n in (2, 4, 6, 8)]
