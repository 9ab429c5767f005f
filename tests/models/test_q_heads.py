"""The critic's heads: what they compute, how the targets follow, and what a file brings back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.errors import InputError
from toolkit.models.q_heads import HEADS_FILE, QHeads, QKind, kind_for, kind_of

SIZE, VOCABULARY = 6, 11
KINDS: list[QKind] = ["own", "tied"]


def heads_of(kind: QKind) -> tuple[QHeads, Tensor, Tensor, Tensor]:
    """Heads with random weights, states (2, 3, d), tokens (2, 3), and the base's output head."""
    heads = QHeads(SIZE, VOCABULARY, kind)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.normal_(std=0.5)
    ids = torch.randint(0, VOCABULARY, (2, 3))
    return heads, torch.randn(2, 3, SIZE), ids, torch.randn(VOCABULARY, SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_is_read_from_the_whole(kind: QKind) -> None:
    heads, states, ids, weight = heads_of(kind)
    found = heads.taken(states, ids, weight, temperature=2.0)
    for q, logprobs, head in zip(found.q, found.logprobs, heads.online, strict=True):
        assert callable(head.whole)
        whole = head.whole(states, weight)
        torch.testing.assert_close(q, whole.gather(-1, ids.unsqueeze(-1)).squeeze(-1))
        expected = torch.log_softmax(whole / 2.0, dim=-1).gather(-1, ids.unsqueeze(-1))
        torch.testing.assert_close(logprobs, expected.squeeze(-1))

    u = heads.advantages(states, weight)
    taken = torch.stack(found.targets).amin(dim=0) - found.values
    torch.testing.assert_close(u.gather(-1, ids.unsqueeze(-1)).squeeze(-1), taken)
    assert not any(q.requires_grad for q in found.targets) and found.values.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_tied_log_probs_are_those_of_whole_logits(kind: QKind) -> None:
    heads, states, ids, weight = heads_of(kind)
    sum(lp.sum() for lp in heads.taken(states, ids, weight, 0.5).logprobs).backward()  # type: ignore[union-attr]
    found = [p.grad.clone() for p in heads.online.parameters() if p.grad is not None]
    heads.zero_grad()
    for head in heads.online:
        assert callable(head.whole)
        whole = torch.log_softmax(head.whole(states, weight) / 0.5, dim=-1)
        whole.gather(-1, ids.unsqueeze(-1)).sum().backward()
    again = [p.grad for p in heads.online.parameters() if p.grad is not None]
    torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-5)


def test_a_tied_head_reads_the_bases_output_head_and_is_small() -> None:
    """Q(h, .) = W MLP(h) + b, with the base's W."""
    heads, states, _, weight = heads_of("tied")
    lows = [head.mlp(states) @ weight.T + head.bias for head in heads.targets]  # type: ignore[operator]
    expected = torch.minimum(*lows) - heads.value(states)
    torch.testing.assert_close(heads.advantages(states, weight), expected)
    wide = sum(p.numel() for p in QHeads(16, 20_000, "own").parameters())
    narrow = sum(p.numel() for p in QHeads(16, 20_000, "tied").parameters())
    assert wide > 30 * narrow
    assert kind_for(10_000) == "own" and kind_for(10_001) == "tied"


@pytest.mark.parametrize("kind", KINDS)
def test_heads_start_at_zero_and_the_two_of_q_differ_once_they_learn(kind: QKind) -> None:
    heads, states = QHeads(SIZE, VOCABULARY, kind), torch.randn(2, 3, SIZE)
    assert not heads.advantages(states, torch.randn(VOCABULARY, SIZE)).any()
    first, second = heads.online
    assert not torch.equal(*(head.state_dict()["mlp.0.weight"] for head in (first, second)))


def test_targets_start_as_copies_and_move_a_share_of_the_way() -> None:
    heads = QHeads(SIZE, VOCABULARY, "own")
    pairs = list(zip(heads.targets.parameters(), heads.online.parameters(), strict=True))
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in pairs)
    with torch.no_grad():
        for _, online in pairs:
            online.add_(1.0)
    before = [target.clone() for target, _ in pairs]
    heads.sync(0.25)
    for (target, online), then in zip(pairs, before, strict=True):
        torch.testing.assert_close(target, 0.25 * online + 0.75 * then)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_brings_back_all_heads_with_their_targets(kind: QKind, tmp_path: Path) -> None:
    heads, states, _, weight = heads_of(kind)
    heads.save(tmp_path)
    again = QHeads.load(tmp_path, SIZE, VOCABULARY)
    assert kind_of(tmp_path) == kind == again.kind
    for (name, tensor), other in zip(
        heads.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert torch.equal(heads.advantages(states, weight), again.advantages(states, weight))


def test_heads_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    heads, *_ = heads_of("own")
    with pytest.raises(InputError, match="no such file"):
        kind_of(tmp_path)
    heads.save(tmp_path)
    with pytest.raises(InputError, match=r"mlp\.0\.bias is \[12\], but .* needs \[10\]"):
        QHeads.load(tmp_path, 5, VOCABULARY)

    path = tmp_path / HEADS_FILE
    state = load_file(path)
    save_file(state, path)
    with pytest.raises(InputError, match="holds no heads of a critic"):
        kind_of(tmp_path)
    state["value.0.bias"][0] = float("nan")
    save_file(state, path, metadata={"kind": "own"})
    with pytest.raises(InputError, match=r"value\.0\.bias: 1 of 12 numbers are NaN"):
        QHeads.load(tmp_path, SIZE, VOCABULARY)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        kind_of(tmp_path)
