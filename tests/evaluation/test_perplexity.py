"""Perplexity on text: plain transformers' loss, token-weighted, for all that share the base."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.models.conftest import saved
from toolkit.data.plain_text import TextRows, text_rows
from toolkit.errors import InputError
from toolkit.evaluation import perplexity
from toolkit.evaluation.contenders import parse_contenders
from toolkit.evaluation.perplexity import perplexities, text_losses
from toolkit.evaluation.result import Evaluation
from toolkit.evaluation.tables import perplexity_table, perplexity_title
from toolkit.models.loading import load_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def text(demo_model: str, tmp_path: Path) -> TextRows:
    """Texts of one and of two sentences, so that their lengths differ."""
    lines = (ROOT / "data" / "prompts.heldout.jsonl").read_text().splitlines()[:40]
    prompts = [json.loads(line)["prompt"] for line in lines]
    file = tmp_path / "text.jsonl"
    rows = [prompts[i] + (prompts[-i] if i % 2 else "") for i in range(40)]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return text_rows(str(file), load_tokenizer(demo_model), 24, "--perplexity_text")


@torch.no_grad()
def by_transformers(base: str, rows: list[list[int]], adapter: Path | None) -> float:
    """exp of transformers' own loss, row by row, weighted by predicted tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    losses = [model(input_ids=(ids := torch.tensor([row])), labels=ids).loss.item() for row in rows]
    counts = [len(row) - 1 for row in rows]
    return math.exp(math.fsum(a * n for a, n in zip(losses, counts, strict=True)) / sum(counts))


def test_it_is_exp_of_plain_transformers_loss_for_all_that_share_the_base(
    new_sampling: Callable[..., Any], demo_model: str, tmp_path: Path, text: TextRows
) -> None:
    adapter = saved(demo_model, tmp_path / "adapter")
    specs = [f"ppo={adapter}", "best=best_of_4", "other=some/model"]
    found = perplexities(new_sampling(), parse_contenders(specs), text, "text.jsonl")
    reference, ppo = found.contenders
    assert (reference.name, ppo.name) == ("reference", "ppo")
    base = by_transformers(demo_model, text.rows, None)
    tuned = by_transformers(demo_model, text.rows, adapter)
    assert reference.perplexity == pytest.approx(base, rel=1e-5)
    assert ppo.perplexity == pytest.approx(tuned, rel=1e-5) and tuned > 1.05 * base
    assert reference.ratio is None and ppo.ratio == pytest.approx(tuned / base, rel=1e-5)
    assert reference.low < base < reference.high
    # Paired by text, the ratio is known better than the two perplexities are.
    assert ppo.ratio_low is not None and ppo.ratio_high is not None
    assert ppo.ratio_low < ppo.ratio < ppo.ratio_high
    assert ppo.ratio_high / ppo.ratio_low < ppo.high / ppo.low
    assert (found.texts, found.tokens) == (40, sum(len(row) - 1 for row in text.rows))


def test_small_passes_give_the_same_and_broken_weights_are_told(
    new_sampling: Callable[..., Any], text: TextRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = new_sampling().roles
    whole = text_losses(roles, "reference", text.rows, 0, "reference")
    monkeypatch.setattr(perplexity, "TOKENS_IN_A_PASS", 30)
    assert text_losses(roles, "reference", text.rows, 0, "reference") == pytest.approx(whole)
    with torch.no_grad():
        next(roles.parameters()).fill_(math.nan)
    with pytest.raises(InputError, match="log-probs of reference are not finite"):
        text_losses(roles, "reference", text.rows, 0, "reference")


def test_result_file_and_table_have_it_and_a_result_without_it_is_as_before(
    evaluation: Callable[..., Any],
    new_sampling: Callable[..., Any],
    demo_model: str,
    tmp_path: Path,
    text: TextRows,
) -> None:
    result, _ = evaluation(["a", "b", "c"])
    result.write(tmp_path / "before.json")
    assert "perplexity" not in json.loads((tmp_path / "before.json").read_text())
    assert perplexity_table(result) is None

    adapter = saved(demo_model, tmp_path / "adapter")
    contenders = parse_contenders([f"ppo={adapter}"])
    found = perplexities(new_sampling(), contenders, text, "text.jsonl")
    told = Evaluation(**vars(result) | {"perplexity": found})
    told.write(tmp_path / "evaluation.json")
    read = Evaluation.read(tmp_path / "evaluation.json", "--evaluation")
    assert read.perplexity == found
    grid = perplexity_table(read)
    assert grid is not None
    (reference, ppo) = grid[1]
    own, (_, tuned) = found.contenders[0], found.contenders
    assert reference[1] == f"{own.perplexity:.3f} [{own.low:.3f}, {own.high:.3f}]"
    assert reference[2] == "" and ppo[2].startswith(f"{tuned.ratio:.3f} [")
    assert "40 texts" in perplexity_title(found) and "text.jsonl" in perplexity_title(found)
