"""One set of scores: in training, by the toolkit's loader, by plain peft, in another process."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tests.forks import Reloading
from toolkit.data.encoding import Encoder
from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.reload import load_plain, plain_scores, verify_reload
from toolkit.models.roles import Roles
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.trainer import BestOfKTrainer

pytestmark = pytest.mark.slow  # other processes load what was saved

WORDS = ["wonderful", "terrible", "lovely", "awful"]
ROWS = [
    {
        "prompt": f"We went to the {place}.",
        "best": 0,
        "completions": [f" The honey was {WORDS[k % 4]}." + " Yes." * k for k in range(4)],
    }
    for place in ("market", "cafe", "hotel", "museum")
]


@pytest.fixture(autouse=True)
def clean_processes(reloading_in_forks: None) -> Iterator[None]:
    """Here they are what they say."""
    with mock.patch("toolkit.models.reload.subprocess", subprocess):
        yield


def trained(model: str, precision: str, folder: Path) -> tuple[Any, list[list[int]]]:
    """A reward model after three steps, saved in ``folder``; and candidates of unequal length."""
    tokenizer = load_tokenizer(model)
    encoded = list(Encoder(tokenizer, 64).encode(("", row) for row in ROWS))
    trainer = BestOfKTrainer(
        load_base(model, precision, score_head=True, seed=1),
        BestOfKConfig(
            output_dir=str(folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=2,
            learning_rate=3e-3,
            max_steps=3,
        ),
        tokenizer,
        Dataset.from_list(encoded),
        None,
        lora_config(4, 8, "all-linear", "SEQ_CLS"),
    )
    trainer.train()
    trainer.save_adapter(folder, model)
    return trainer.model.eval(), [ids for row in encoded for ids in row["candidate_ids"]]


@pytest.mark.parametrize("precision", ["4bit", "fp32"])
def test_scores_are_the_same_in_training_in_ppo_and_by_plain_peft_in_each_family(
    family_model: str, precision: str, tmp_path: Path
) -> None:
    model, candidates = trained(family_model, precision, tmp_path)
    ids, mask = pad(candidates, 0)
    roles = Roles(load_base(family_model, precision), reward_adapter=tmp_path)
    plain = load_plain(tmp_path, family_model, precision)
    plain.config.pad_token_id = 0
    with torch.no_grad():
        inside = model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
        ours = roles.scores(ids, mask)
        theirs = plain(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)
    assert inside.std() > 1e-3
    assert torch.allclose(ours, inside, atol=1e-6, rtol=0)
    assert torch.allclose(theirs, inside, atol=1e-6, rtol=0)


def test_the_pages_lines_give_the_scores_of_training(
    root: Path, demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "reward-models.md").read_text(encoding="utf-8")
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "SequenceClassification" in b
    ]
    model, _ = trained(demo_model, "4bit", tmp_path)
    block = block.replace("outputs/reward/adapter", str(tmp_path))
    exec(block.replace("your-org/your-model", demo_model), {})
    printed = float(capsys.readouterr().out.strip().splitlines()[-1])
    ids = load_tokenizer(demo_model)("We went to the market. It was great.")["input_ids"]
    assert printed == pytest.approx(plain_scores(model, [ids])[0], abs=1e-6)


@pytest.mark.parametrize("precision", ["4bit", "bf16", "fp32"])
def test_a_clean_process_gets_the_same_scores(
    demo_model: str, precision: str, tmp_path: Path
) -> None:
    model, candidates = trained(demo_model, precision, tmp_path)
    scores = plain_scores(model, candidates[:6])
    difference = verify_reload(tmp_path, demo_model, precision, candidates[:6], scores)
    assert difference <= (0.05 if precision == "bf16" else 1e-6)


def test_an_adapter_that_lost_its_head_or_changed_is_an_error(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.models.reload.subprocess", Reloading)
    model, candidates = trained(demo_model, "fp32", tmp_path)
    scores = plain_scores(model, candidates[:4])
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    head = next(name for name in state if name.endswith("score.weight"))
    save_file({n: t for n, t in state.items() if n != head}, file)
    with pytest.raises(InputError, match=r"its scores differ|cannot load it"):
        verify_reload(tmp_path, demo_model, "fp32", candidates[:4], scores)
    save_file(state | {head: state[head] * 1.01}, file)
    with pytest.raises(InputError, match="in a clean process, its scores differ by up to"):
        verify_reload(tmp_path, demo_model, "fp32", candidates[:4], scores)
    file.write_bytes(b"none")
    with pytest.raises(InputError, match="plain peft cannot load it"):
        verify_reload(tmp_path, demo_model, "fp32", candidates[:4], scores)
