"""ILQL's trainer: what reaches what, a run that is cut off, and that the method works."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.ilql.walks import LONGEST, NODES, PAD, Walks
from toolkit.errors import InputError, Interrupted, RunStopped
from toolkit.models.actors import CRITIC, POLICY
from toolkit.models.adapters import lora_config
from toolkit.models.q_heads import QKind
from toolkit.models.roles import Roles
from toolkit.training.ilql.config import ILQLConfig
from toolkit.training.ilql.data import collate
from toolkit.training.ilql.trainer import ILQLTrainer
from toolkit.training.ppo.checkpoints import checkpoints


@pytest.fixture(scope="module")
def walks() -> Walks:
    return Walks()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with random weights, which reads nodes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NODES + 1, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def roles_on(tiny: Path, kind: QKind = "own", rank: int = 64) -> Roles:
    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(tiny).requires_grad_(False).eval()
    roles = Roles(base, lora_config(rank, rank, "all-linear", "CAUSAL_LM"), checked=False)
    roles.add_critic(kind)
    return roles


def trainer_of(
    tiny: Path, walks: Walks, out: Path, kind: QKind = "own", **told: Any
) -> ILQLTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 4, "per_device_train_batch_size": 20,
        "save_steps": 2, "logging_steps": 1, "eval_steps": 2, "alpha": 0.1, "awac_beta": 0.5,
    }  # fmt: skip
    config = ILQLConfig(**settings | told)
    rows = walks.rows()
    return ILQLTrainer(config, roles_on(tiny, kind, 4), rows[:100], rows[100:120], PAD)


def test_the_walks_are_those_of_trlx(walks: Walks) -> None:
    found = np.mean([walks.optimality(walk) for walk in walks.walks])
    assert found == pytest.approx(0.790, abs=5e-4) and len(walks.walks) == 1000
    assert max(map(len, walks.walks)) == LONGEST


@pytest.mark.parametrize("kind", ["own", "tied"])
def test_no_gradient_of_the_critic_reaches_the_policy_and_none_of_it_the_critic(
    kind: QKind, tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny, walks, tmp_path, kind)
    roles = trainer.roles
    with torch.no_grad():  # no adapter that starts at zero may hide a path
        for name, parameter in roles.trainable():
            if "lora_B" in name or name.startswith("critic."):
                parameter.normal_(std=0.1)
    batch = collate(trainer.batch(1), PAD, roles.device)
    count = int(batch.completion_mask.sum())

    def reached() -> dict[str, bool]:
        parts = {POLICY: False, CRITIC: False, "other": False}
        for name, parameter in roles.named_parameters():
            if parameter.grad is not None and parameter.grad.any():
                part = POLICY if f".{POLICY}." in name else "other"
                part = CRITIC if f".{CRITIC}." in name or name.startswith("critic.") else part
                parts[part] = True
        roles.zero_grad(set_to_none=True)
        return parts

    for name in ("q", "v", "cql"):
        losses, u = trainer.critic_losses(batch, count)
        losses[name].backward()
        assert reached() == {POLICY: False, CRITIC: True, "other": False}, name
        assert not u.requires_grad
    trainer.policy_loss(batch, u, count).backward()
    assert reached() == {POLICY: True, CRITIC: False, "other": False}
    assert not any(p.requires_grad for p in trainer.heads.targets.parameters())


def test_q_and_v_are_read_at_the_state_before_the_token(
    tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    """Another last token changes neither its own Q table nor any V, as the state is before it."""
    trainer = trainer_of(tiny, walks, tmp_path)
    with torch.no_grad():
        for name, parameter in trainer.roles.named_parameters():
            if "lora_B" in name or name.startswith("critic."):
                parameter.normal_(std=0.2)
    rows = [{"prompt_ids": [3], "completion_ids": [5, 6, last], "reward": 1.0} for last in (7, 8)]
    first, second = (collate([row], PAD, torch.device("cpu")) for row in rows)

    def states(batch: Any) -> torch.Tensor:
        return trainer.roles.states(CRITIC, batch.ids, batch.mask, 3)

    torch.testing.assert_close(states(first), states(second))
    # By hand: the state before a token is the trunk's last state of the tokens before it.
    model = trainer.roles.act_as(CRITIC)
    alone = model.model(torch.tensor([[3, 5]])).last_hidden_state[:, -1]
    torch.testing.assert_close(states(first)[:, 1], alone, rtol=1e-4, atol=1e-5)

    # And the losses are those of the equations, read off whole tables.
    heads, config = trainer.heads, trainer.config
    with torch.no_grad():
        table = [head.mlp(states(first)) for head in heads.online]  # type: ignore[operator]
        v = heads.value(states(first)).squeeze(-1)[0]
        aims = torch.stack([config.gamma * v[1], config.gamma * v[2], torch.tensor(1.0)])
        taken = [q[0, range(3), [5, 6, 7]] for q in table]
        expected = sum(((q - aims) ** 2).mean() for q in taken)
        losses, _ = trainer.critic_losses(first, 3)
    torch.testing.assert_close(losses["q"], expected)


def test_padding_and_parts_of_a_batch_change_no_loss_and_no_gradient(
    tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    whole = trainer_of(tiny, walks, tmp_path, per_device_train_batch_size=20)
    parts = trainer_of(
        tiny, walks, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=5
    )
    first, second = whole.update(1), parts.update(1)
    assert first == pytest.approx(second, rel=1e-4)
    for (name, a), (_, b) in zip(whole.roles.changing(), parts.roles.changing(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


@contextmanager
def signal_at(trainer: ILQLTrainer, update: int) -> Iterator[None]:
    """A signal comes while this update is made."""
    made = trainer.update

    def heard(number: int) -> dict[str, float]:
        if number == update:
            trainer.signals.came = 15
        return made(number)

    trainer.update = heard  # type: ignore[method-assign]
    yield


@pytest.mark.parametrize("kind", ["own", "tied"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    kind: QKind, tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    whole = trainer_of(tiny, walks, tmp_path / "whole", kind)
    whole.train()

    out = tmp_path / "cut"
    cut = trainer_of(tiny, walks, out, kind)
    with signal_at(cut, 3), pytest.raises(Interrupted, match="--resume auto continues"):
        cut.train()
    assert [number for number, _ in checkpoints(out)] == [3]

    resumed = trainer_of(tiny, walks, out, kind, resume="auto")
    assert resumed.train() == whole.history
    assert (out / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()
    for (name, a), (_, b) in zip(whole.roles.changing(), resumed.roles.changing(), strict=True):
        assert torch.equal(a, b), name
    targets = [name for name, _ in resumed.roles.changing() if name.startswith("critic.targets")]
    assert targets  # they are in the checkpoint, and what they are now is not what they began as
    assert "eval/correlation" in resumed.history[-1]


def test_a_run_is_resumed_only_under_the_same_settings(
    tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    trainer_of(tiny, walks, tmp_path, stop_at_update=2).train()
    with pytest.raises(InputError, match=r"tau: was 0\.7, is 0\.9"):
        trainer_of(tiny, walks, tmp_path, resume="auto", tau=0.9).train()
    nothing = trainer_of(tiny, walks, tmp_path / "other", resume="auto", max_steps=1)
    assert nothing.train()[-1]["update"] == 1  # there is no checkpoint, so it starts anew


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Path, walks: Walks, tmp_path: Path) -> None:
    trainer = trainer_of(tiny, walks, tmp_path)
    with torch.no_grad():
        trainer.heads.value[2].bias.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(RunStopped, match="loss/q is not finite at update 1"):
        trainer.train()
    assert not checkpoints(tmp_path)


def test_a_gradient_that_is_not_finite_changes_nothing(
    tiny: Path, walks: Walks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tiny, walks, tmp_path, max_grad_norm=0.0)
    before = [p.detach().clone() for p in trainer.parts["critic"]]
    backward = trainer.backward

    def too_steep(*batch: Any) -> dict[str, float]:
        found = backward(*batch)
        for p in trainer.parts["critic"]:
            assert p.grad is not None
            p.grad.fill_(float("inf"))
        return found

    monkeypatch.setattr(trainer, "backward", too_steep)
    with pytest.raises(RunStopped, match="gradient of the critic is not finite at update 1"):
        trainer.train()
    assert not checkpoints(tmp_path)
    assert all(map(torch.equal, before, trainer.parts["critic"]))


def test_targets_that_hardly_move_are_known_beforehand(
    tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    share = trainer_of(tiny, walks, tmp_path, alpha=0.001, sync_every=5, max_steps=500)
    assert share.targets_share() == pytest.approx(0.095208, abs=1e-6)  # oracle M9, from 1 to 2


@pytest.mark.slow
def test_it_learns_the_shortest_paths_from_random_walks(
    tiny: Path, walks: Walks, tmp_path: Path
) -> None:
    """Likelihood alone repeats the walks (.79 of the best); Q - V at beta 100 finds the paths."""
    roles = roles_on(tiny)
    config = ILQLConfig(
        output_dir=str(tmp_path), tau=0.8, alpha=0.1, sync_every=5, learning_rate=3e-3,
        lr_scheduler_type="constant", max_steps=200, per_device_train_batch_size=100,
    )  # fmt: skip
    trainer = ILQLTrainer(config, roles, walks.rows(), [], PAD)
    for number in range(1, 201):
        trainer.update(number)
    for beta in (4, 100):
        roles.steer(f"beta{beta}", beta)

    alone = walks.reached(roles, POLICY, 20)
    assert 0.74 < alone < 0.84
    assert alone + 0.08 < walks.reached(roles, "beta4", 20)
    assert walks.reached(roles, "beta100", 20) >= 0.97
