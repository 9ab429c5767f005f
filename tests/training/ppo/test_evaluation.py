"""Held-out prompts: the metrics of their sums, and completions as a table."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.data.prompts import Prompts
from toolkit.models.generation import draw_uniforms
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.evaluation import evaluate, show_completions
from toolkit.training.ppo.rollouts import Rollout


def test_completions_with_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query": "Hello [/INST] there", "model response": "\x1b[31mred", "score": 1.0}
    show_completions([row], tmp_path / "completions.jsonl")
    shown = capsys.readouterr().out
    assert "[/INST]" in shown and "\x1b[31m" not in shown


SCORES = torch.tensor([1.0, 3.0, 0.0, 5.0, 1.0])  # of prompts 0 to 4; the third has none


def collected(prompts: Prompts, uniforms: Tensor) -> Rollout:
    """Episodes whose scores the prompts' only tokens tell, and whose KL is the noise's sum."""
    which = torch.tensor([ids[0] for ids in prompts])
    mask = torch.ones(uniforms.shape, dtype=torch.bool)
    return Rollout(
        prompt_ids=which.unsqueeze(1),
        prompt_mask=mask[:, :1],
        completion_ids=mask.long(),
        mask=mask,
        logprobs=uniforms,
        ref_logprobs=torch.zeros_like(uniforms),
        values=None,
        scores=SCORES[which],
        valid=mask[:, 0],
        scored=which != 2,
    )


def metrics(
    which: list[int], parts: dict[str, list[int]] | None = None, ranks: Any = None, **kwargs: Any
) -> dict[str, float]:
    prompts = Prompts([[i] for i in which])
    named = {name: Prompts([[i] for i in part]) for name, part in (parts or {}).items()}
    options = {"response_length": 4, "seed": 0, "kl_coef": 0.5} | kwargs
    return evaluate(collected, prompts, named, ranks=ranks or Ranks(), **options)


def test_an_evaluation_is_the_mean_score_with_its_standard_error_and_the_kls_price() -> None:
    found = metrics([0, 1, 2, 3])
    scores = [1.0, 3.0, 5.0]  # whose standard deviation is 2
    assert found["eval/scores"] == pytest.approx(sum(scores) / 3)
    assert found["eval/scores_error"] == pytest.approx(2 / math.sqrt(3))
    kl = draw_uniforms(4, 4, torch.Generator().manual_seed(1)).sum(1).mean().item()
    assert found["eval/kl"] == pytest.approx(kl)
    assert found["eval/rlhf_reward"] == pytest.approx(3 - 0.5 * kl)


def test_before_a_coefficient_is_known_an_evaluation_has_all_but_the_kls_price() -> None:
    known, unknown = (
        metrics([0, 1], parts={"own": [0, 1]}),
        metrics([0, 1], parts={"own": [0, 1]}, kl_coef=math.nan),
    )
    missing = {"eval/rlhf_reward", "eval/own/rlhf_reward"}
    assert set(known) - set(unknown) == missing
    assert unknown == {name: value for name, value in known.items() if name not in missing}


def test_the_noise_is_the_same_each_time_and_another_seeds_is_not() -> None:
    assert metrics([0, 1]) == metrics([0, 1])
    assert metrics([0, 1])["eval/kl"] != metrics([0, 1], seed=1)["eval/kl"]


def test_of_one_score_there_is_no_error_and_of_none_no_mean() -> None:
    assert math.isnan(metrics([0])["eval/scores_error"]) and metrics([0])["eval/scores"] == 1
    assert math.isnan(metrics([2])["eval/scores"])


def test_each_dataset_has_what_it_would_get_alone_and_all_are_summed() -> None:
    found = metrics([0, 1, 3], {"a": [0, 1], "b": [3]})
    for name, which in (("a", [0, 1]), ("b", [3])):
        alone = metrics(which)
        assert [found[f"eval/{name}/{key}"] for key in ("scores", "kl")] == [
            alone[f"eval/{key}"] for key in ("scores", "kl")
        ]
    assert found["eval/scores"] == pytest.approx(3)
    assert found["eval/scores_error"] == pytest.approx(2 / math.sqrt(3))


class Share:
    """One of two processes, which notes its sums; the second adds the first's."""

    world = 2

    def __init__(self, rank: int, others: Tensor | float = 0.0) -> None:
        self.rank, self.others = rank, others

    def total(self, value: Tensor) -> Tensor:
        self.sums = value
        return value + self.others


def test_two_processes_count_each_prompt_once() -> None:
    """Of five prompts one process has a prompt less, and repeats one that must not count."""
    which = [0, 1, 2, 3, 4]
    first = Share(rank=0)
    metrics(which, ranks=first)
    assert metrics(which, ranks=Share(1, first.sums)) == pytest.approx(metrics(which))
