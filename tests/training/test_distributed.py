"""The processes: shares of a batch, and no silence about another world than was asked for."""

import pytest
import torch

from toolkit.errors import InputError
from toolkit.training.distributed import Ranks


def test_alone_nothing_is_summed() -> None:
    ranks = Ranks()
    value = torch.tensor([1.0, 2.0])
    assert ranks.total(value) is value and ranks.largest(value) is value
    assert ranks.gather({"a": 1}) == [{"a": 1}] and ranks.is_main


def test_shares_cut_a_batch_without_gap_or_overlap() -> None:
    ranks = Ranks()
    ranks.world, taken = 4, []
    for ranks.rank in range(4):
        taken += list(range(12))[ranks.share(12)]
    assert taken == list(range(12))


def test_another_world_than_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="world_size is 2, but the number of processes is 1"):
        Ranks(2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="WORLD_SIZE is 3, but the number of processes is 1"):
        Ranks()


def test_sharding_that_would_be_ignored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed is not supported by PPO"):
        Ranks()


def test_one_process_has_nothing_to_share_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    ranks = Ranks()
    assert not ranks.sharded and ranks.idle_passes(3) == 0
