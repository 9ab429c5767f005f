"""The reward trainer: the seam in TRL, fp32 heads, learning, and scores that survive a reload."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors.torch import load_file
from trl import RewardConfig, RewardTrainer

from tests.models.conftest import saved
from toolkit.data.collators import ComparisonCollator
from toolkit.data.encoding import Encoder
from toolkit.errors import InputError
from toolkit.maths.losses import best_of_k_loss, best_vs_rest_loss, centering_penalty
from toolkit.maths.sequences import pad
from toolkit.models.actors import REFERENCE
from toolkit.models.adapters import lora_config, lora_config_like
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.models.sampling import sampling_rule
from toolkit.models.toolkit_json import write_facts
from toolkit.scoring.accuracy import best_of_k_accuracy
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.trainer import (
    BestOfKTrainer,
    comparison_loss,
    normalize,
    score_candidates,
    score_in_buckets,
)

pytestmark = pytest.mark.slow  # trains

GOOD, BAD = " The honey was wonderful.", " The honey was terrible."


def rows(count: int = 48, k: int = 4) -> list[dict]:
    """The best is the one that praises; its place changes from row to row."""
    return [
        {
            "prompt": f"We went to the {('market', 'cafe', 'hotel')[i % 3]}.",
            "completions": [GOOD if j == i % k else BAD for j in range(k)],
            "best": i % k,
        }
        for i in range(count)
    ]


def encode(tokenizer: Any, rows: list[dict]) -> list[dict]:
    return list(Encoder(tokenizer, 64).encode(("", row) for row in rows))


def config(tmp_path: Path, **kwargs: object) -> BestOfKConfig:
    defaults: dict = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "num_train_epochs": 2,
        "logging_steps": 100,
    }
    return BestOfKConfig(output_dir=str(tmp_path / "t"), **(defaults | kwargs))


def train(demo_model: str, tmp_path: Path, precision: str = "4bit") -> tuple[BestOfKTrainer, list]:
    tokenizer = load_tokenizer(demo_model)
    encoded = encode(tokenizer, rows())
    trainer = BestOfKTrainer(
        model=load_base(demo_model, precision, score_head=True),
        args=config(tmp_path),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(encoded),
        eval_dataset=Dataset.from_list(encoded[:12]),
        peft_config=lora_config(8, 16, "all-linear", "SEQ_CLS"),
    )
    return trainer, encoded


def test_pairs_give_trls_own_loss_and_gradients(demo_model: str, tmp_path: Path) -> None:
    """K = 2 against the stock RewardTrainer: same base, adapter and batch."""
    tokenizer = load_tokenizer(demo_model)
    pairs = encode(tokenizer, rows(6, k=2))
    stock_rows = [
        {
            "chosen_ids": r["candidate_ids"][r["best"]],
            "rejected_ids": r["candidate_ids"][1 - r["best"]],
        }
        for r in pairs
    ]
    model = get_peft_model(
        load_base(demo_model, "fp32", score_head=True),
        lora_config(8, 16, "all-linear", "SEQ_CLS"),
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    stock = RewardTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(stock_rows),
        args=RewardConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            activation_checkpointing=False,
        ),
    )
    ours = object.__new__(BestOfKTrainer)
    ours.__dict__.update(stock.__dict__)
    ours.config = config(tmp_path)
    outcomes = []
    for loss in (
        stock.compute_loss(model, stock.data_collator(stock_rows)),
        BestOfKTrainer.compute_loss(ours, model, ComparisonCollator(0)(pairs)),
    ):
        model.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        outcomes.append((loss.item(), gradients))
    (stock_loss, stock_gradients), (our_loss, our_gradients) = outcomes
    assert our_loss == pytest.approx(stock_loss, abs=1e-6)
    assert any("score" in name for name in our_gradients)
    for name, gradient in stock_gradients.items():
        assert torch.allclose(gradient, our_gradients[name], atol=1e-6), name


@pytest.mark.parametrize("precision", ["4bit", "fp32"])
def test_it_learns_what_is_praised_and_reloads_to_the_same_scores(
    demo_model: str, tmp_path: Path, precision: str
) -> None:
    trainer, encoded = train(demo_model, tmp_path, precision)
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    head = trainer.model.base_model.model.score.modules_to_save["default"].weight
    assert head.std().item() == pytest.approx((128 + 1) ** -0.5, rel=0.2)
    before = head.detach().clone()
    trainer.train()
    assert not torch.equal(before, head)
    assert trainer.evaluate()["eval_loss"] < 0.2 < 1.38

    # The same scores in training, by our loader, and by plain peft and transformers.
    ids, mask = pad(encoded[0]["candidate_ids"], 0)
    model = trainer.model.eval()
    with torch.no_grad():
        inside = model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
    model.save_pretrained(tmp_path / "adapter")
    write_facts(tmp_path / "adapter", demo_model)
    roles = Roles(load_base(demo_model, precision), reward_adapter=tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(roles.scores(ids, mask), inside, atol=1e-6)
    if precision == "fp32":
        plain = AutoPeftModelForSequenceClassification.from_pretrained(
            tmp_path / "adapter", num_labels=1
        )
        plain.config.pad_token_id = 0
        with torch.no_grad():
            theirs = plain(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
        assert torch.allclose(theirs, inside, atol=1e-6)

    scores = score_candidates(roles, encoded, pad_id=0, batch_size=7)
    assert torch.allclose(torch.tensor(scores[0]), inside, atol=1e-4)
    accuracy = best_of_k_accuracy(scores, [row["best"] for row in encoded])
    assert accuracy.accuracy == 1.0 and accuracy.chance == 0.25


def test_normalised_scores_of_fresh_reference_samples_have_mean_0_and_std_1(
    demo_model: str, tmp_path: Path
) -> None:
    trainer, _ = train(demo_model, tmp_path)
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(demo_model)
    roles = Roles(load_base(demo_model, "4bit"), reward_adapter=tmp_path / "adapter")
    rule = sampling_rule(tokenizer, 12, 0.7)
    prompts = tokenizer([row["prompt"] for row in rows(3)])["input_ids"]
    facts = normalize(roles, prompts, rule, tokenizer, samples=60, seed=0, batch_size=25)
    assert facts["gain"] == roles.gain != 1.0
    raw_mean, raw_std = facts["raw_mean"], facts["raw_std"]
    assert roles.gain * raw_mean + roles.bias == pytest.approx(0.0, abs=1e-5)
    assert roles.gain * raw_std == pytest.approx(1.0, abs=1e-5)
    ids, mask = pad(prompts, 0)
    with torch.no_grad():
        scaled = roles.scores(ids, mask)
        write_facts(tmp_path / "adapter", demo_model, **facts)
        again = Roles(load_base(demo_model, "4bit"), reward_adapter=tmp_path / "adapter")
        assert torch.equal(again.scores(ids, mask), scaled)
        again.gain, again.bias = 1.0, 0.0
        assert torch.allclose(facts["gain"] * again.scores(ids, mask) + facts["bias"], scaled)
    with pytest.raises(ValueError, match="already normalized"):
        normalize(roles, prompts, rule, tokenizer, samples=60, seed=0)


def test_from_a_supervised_policy_scores_have_mean_0_and_std_1_on_its_samples(
    demo_model: str, tmp_path: Path
) -> None:
    """The samples that are measured are fresh; the base's own have another mean."""
    start = saved(demo_model, tmp_path / "sft", scale=0.3)
    tokenizer = load_tokenizer(demo_model)
    trainer = BestOfKTrainer(
        model=load_base(demo_model, "fp32", score_head=True),
        args=config(tmp_path, num_train_epochs=1),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(encode(tokenizer, rows())),
        eval_dataset=None,
        peft_config=lora_config_like(start, "SEQ_CLS"),
        start=start,
    )
    file = load_file(start / "adapter_model.safetensors")
    held = dict(trainer.model.named_parameters())
    for key, tensor in file.items():
        assert torch.equal(held[key.replace(".weight", ".default.weight")], tensor), key

    trainer.train()
    trainer.model.save_pretrained(tmp_path / "adapter")
    roles = Roles(load_base(demo_model, "fp32"), reward_adapter=tmp_path / "adapter")
    roles.add_policy("start", start)
    rule = sampling_rule(tokenizer, 12, 0.7)
    prompts = tokenizer([row["prompt"] for row in rows(3)])["input_ids"]
    normalize(roles, prompts, rule, tokenizer, samples=600, seed=0, role="start")

    def fresh(role: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(9)
        _, sampled = rule.sample(roles.step(role), prompts * 200, generator, roles.device)
        written = zip(prompts * 200, sampled.completion_ids.tolist(), strict=True)
        ids, mask = pad([prompt + completion for prompt, completion in written], 0)
        with torch.no_grad():
            return roles.scores(ids, mask)

    scores = fresh("start")
    assert abs(scores.mean().item()) < 0.1
    assert scores.std().item() == pytest.approx(1.0, abs=0.1)
    assert abs(fresh(REFERENCE).mean().item()) > 0.3


def test_a_head_that_says_the_same_of_everything_is_refused(
    demo_model: str, tmp_path: Path
) -> None:
    trainer, _ = train(demo_model, tmp_path)
    torch.nn.init.zeros_(trainer.model.base_model.model.score.modules_to_save["default"].weight)
    trainer.model.save_pretrained(tmp_path / "adapter")
    tokenizer = load_tokenizer(demo_model)
    roles = Roles(load_base(demo_model, "4bit"), reward_adapter=tmp_path / "adapter")
    rule = sampling_rule(tokenizer, 4, 0.7)
    with pytest.raises(InputError, match="the head learned nothing"):
        normalize(roles, [[5, 6]], rule, tokenizer, samples=16, seed=0)


def test_an_adapter_that_would_forget_its_head_is_refused(demo_model: str, tmp_path: Path) -> None:
    for task_type in ("CAUSAL_LM", None):
        with pytest.raises(ValueError, match="must be SEQ_CLS"):
            BestOfKTrainer(
                model=None,
                args=None,
                processing_class=None,
                train_dataset=None,
                eval_dataset=None,
                peft_config=LoraConfig(task_type=task_type),
            )


def trained_with(demo_model: str, tmp_path: Path, data: list[dict], **kwargs: object) -> Any:
    tokenizer = load_tokenizer(demo_model)
    base = load_base(demo_model, "fp32", score_head=True)
    trainer = BestOfKTrainer(
        base,
        config(tmp_path, **kwargs),
        tokenizer,
        Dataset.from_list(encode(tokenizer, data)),
        None,
        lora_config(8, 16, "all-linear", "SEQ_CLS"),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "loss_type", ["best_of_k", "best_vs_rest", "plackett_luce", "scalar_rating", "scalar_compare"]
)
def test_every_loss_learns_to_put_praise_first_with_mixed_k(
    demo_model: str, tmp_path: Path, loss_type: str
) -> None:
    words = ["wonderful", "plain", "terrible", "awful"]
    data = []
    for i in range(48):
        k = 2 + i % 3
        order = [(j + i) % k for j in range(k)]  # order[j] = how bad the j-th is
        place = ("market", "cafe", "hotel")[i % 3]
        data.append(
            {
                "prompt": f"We went to the {place}.",
                "best": order.index(0),
                "completions": [f" The honey was {words[o]}." for o in order],
                "ranking": sorted(range(k), key=order.__getitem__),
                "scores": [-float(o) for o in order],
            }
        )
    trainer = trained_with(demo_model, tmp_path, data, loss_type=loss_type, num_train_epochs=3)
    assert trainer.state.log_history[-1]["accuracy"] > 0.6
    encoded = encode(load_tokenizer(demo_model), data)
    ids, mask = pad([c for row in encoded for c in row["candidate_ids"]], 0)
    with torch.no_grad():
        flat, _ = score_in_buckets(trainer.model.eval(), ids, mask.long())
    scores = [part.tolist() for part in flat.split([len(r["candidate_ids"]) for r in encoded])]
    assert best_of_k_accuracy(scores, [row["best"] for row in data]).accuracy > 0.95


def test_scores_in_buckets_are_those_of_one_padded_pass_in_their_order(
    demo_model: str, tmp_path: Path
) -> None:
    trainer, _ = train(demo_model, tmp_path, "fp32")
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 60, (40,), generator=generator).tolist()
    texts = [torch.randint(2, 1000, (n,), generator=generator).tolist() for n in lengths]
    ids, mask = pad(texts, 0)
    with torch.no_grad():
        flat, padding = score_in_buckets(trainer.model.eval(), ids, mask.long())
        unmasked, _ = score_in_buckets(trainer.model, ids, mask.long(), masked=False)
        whole = trainer.model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
    assert torch.allclose(flat, whole, atol=1e-5) and padding < 0.15
    assert (unmasked - flat).abs().max() < 1e-6 * flat.abs().max().clamp(min=1)
    assert 1 - mask.float().mean() > 0.35


def test_gradient_checkpointing_changes_no_gradient(demo_model: str, tmp_path: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        trainer = trained_with(
            demo_model,
            tmp_path,
            rows(8),
            max_steps=1,
            learning_rate=1e-9,
            activation_checkpointing=checkpointing,
        )
        assert trainer.model.is_gradient_checkpointing == checkpointing
        batch = trainer.data_collator(encode(load_tokenizer(demo_model), rows(8)))
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append(
            {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name
    assert any(g.any() for g in gradients[0].values())


def test_the_options_reach_the_loss(tmp_path: Path) -> None:
    scores = torch.tensor([[0.3, -1.0, 0.8], [1.0, 0.5, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = {"best": torch.tensor([2, 1]), "margin": torch.tensor([0.5, 2.0])}
    best, margin = batch["best"], batch["margin"]
    plain = best_of_k_loss(scores, best, mask)
    for kwargs, expected in (
        ({}, plain),
        ({"label_smoothing": 0.1}, best_of_k_loss(scores, best, mask, 0.1)),
        ({"use_margin": True}, best_of_k_loss(scores, best, mask, margin=margin)),
        ({"center_rewards_coefficient": 0.5}, plain + 0.5 * centering_penalty(scores, mask)),
        ({"loss_type": "best_vs_rest"}, best_vs_rest_loss(scores, best, mask)),
    ):
        assert comparison_loss(config(tmp_path, **kwargs), scores, mask, batch) == expected


def test_all_labels_reach_the_batches_and_the_log_is_of_real_candidates(
    demo_model: str, tmp_path: Path
) -> None:
    data = [
        {
            "prompt": "We went.",
            "completions": [GOOD, BAD, " Yes."][: 2 + i % 2],
            "best": 0,
            "ranking": [0],
            "worst": 1,
            "scores": [2.0, 1.0, 0.0][: 2 + i % 2],
            "margin": 1.0,
        }
        for i in range(8)
    ]
    trainer = trained_with(demo_model, tmp_path, data, max_steps=1, use_margin=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert {"ranking", "worst", "target_scores", "margin", "candidates"} <= set(batch)
    trainer.model.eval()
    trainer._metrics["eval"].clear()
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    mask = torch.arange(3) < batch["candidates"].unsqueeze(1)
    logged = trainer._metrics["eval"]["mean_reward"]
    assert logged == [pytest.approx(outputs["scores"][mask].mean().item(), abs=1e-6)]


def test_normalizing_sees_whole_samples_or_what_the_rule_leaves(
    demo_model: str, tmp_path: Path
) -> None:
    trainer, _ = train(demo_model, tmp_path)
    trainer.train()
    trainer.save_adapter(tmp_path / "adapter", demo_model)
    tokenizer = load_tokenizer(demo_model)
    rule = sampling_rule(tokenizer, 24, 0.7, truncate_token=".", truncate_after=2)
    prompts = tokenizer([row["prompt"] for row in rows(3)])["input_ids"]
    means = []
    for whole in (True, False):
        roles = Roles(load_base(demo_model, "4bit"), reward_adapter=tmp_path / "adapter")
        means.append(normalize(roles, prompts, rule, tokenizer, 40, 0, whole)["raw_mean"])
    assert abs(means[0] - means[1]) > 1e-3
