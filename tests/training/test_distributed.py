"""The processes: shares of a batch, and no silence about another world than was asked for."""

import pytest
import torch
import torch.distributed as dist

from toolkit.errors import InputError
from toolkit.training.distributed import Ranks, is_lost


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


GLOO = "[/x/gloo/transport/tcp/{}] {}"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO.format("pair.cc:553", "Connection closed by peer [10.0.0.2]:1")), True),
        (RuntimeError(GLOO.format("pair.cc:537", "Read error: Connection reset by peer.")), True),
        (RuntimeError(GLOO.format("unbound_buffer.cc:78", "Timed out waiting 8000ms")), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (dist.DistNetworkError("the client socket has timed out"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (RuntimeError(GLOO.format("pair.cc:1", "enforce fail: 8 vs 4")), False),
        (ConnectionError("a judge's: connection reset by peer"), False),
    ],
)
def test_a_process_that_is_lost_is_told_from_a_bug(error: Exception, lost: bool) -> None:
    assert is_lost(error) is lost


def test_what_the_main_process_finds_is_found_by_all() -> None:
    def refuse() -> int:
        raise InputError("no")

    assert Ranks().from_main(lambda: 3) == 3
    with pytest.raises(InputError, match="no"):
        Ranks().from_main(refuse)


def test_a_process_with_other_settings_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    ranks.check_same({"seed": 1, "prompts": "a"})

    def with_another(mine: tuple[str, dict[str, str]]) -> list[tuple[str, dict[str, str]]]:
        return [mine, ("far", mine[1] | {"prompts": "another hash"})]

    monkeypatch.setattr(ranks, "gather", with_another)
    with pytest.raises(InputError, match=r"process 1 on far has other .*than process 0: prompts "):
        ranks.check_same({"seed": 1, "prompts": "a"})
