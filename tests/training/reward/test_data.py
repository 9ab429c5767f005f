"""From checked comparisons to datasets on disk, and what is refused on the way."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.data.chat import read_chat
from toolkit.data.comparisons import open_comparisons
from toolkit.data.encoding import Encoder
from toolkit.data.records import source_of
from toolkit.data.splits import folds_by_prompt, split_by_prompt
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.data import RewardData, check_weights, prepare, scaled_weights

ROWS = [
    {
        "prompt": f"We went {'far ' * (i % 4)}{i}.",
        "completions": [" Good.", " Bad."],
        "best": i % 2,
        "margin": 1.0,
        "scores": [0.0, float(i)],
    }
    for i in range(40)
]


def prepared(
    demo_model: str,
    folder: Path,
    rows: list[dict] = ROWS,
    longest: int = 99,
    template: str | None = None,
    **kwargs: Any,
) -> RewardData:
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = BestOfKConfig(output_dir=str(folder / "out"), use_cpu=True, **kwargs)
    source = open_comparisons(folder / "c.jsonl", config.wants, "--comparisons")
    train, held_out = split_by_prompt(source.order, 10, seed=0)
    encoder = Encoder(load_tokenizer(demo_model), 64, chat=read_chat(template))
    return prepare(source, train, held_out, encoder, config, 5, longest, folder)


def folders(path: Path) -> list[Path]:
    return list(path.glob(".tokens.*"))


@pytest.mark.slow
def test_every_row_is_on_one_side_and_its_tokens_lie_on_disk(
    demo_model: str, tmp_path: Path
) -> None:
    data = prepared(demo_model, tmp_path)
    assert (len(data.train), len(data.held_out), len(data.rows)) == (30, 10, 10)
    assert data.facts["train_comparisons"] == 30 and data.facts["rows"] == 40
    tokenizer = load_tokenizer(demo_model)
    for row in data.held_out:
        original = data.rows[row["row"]]
        texts = [original["prompt"] + completion for completion in original["completions"]]
        assert row["candidate_ids"] == tokenizer(texts)["input_ids"]
    assert len(data.probes(3)) == 3
    texts, prompts = data.texts_and_prompts()
    assert texts[0] == [" Good.", " Bad."] and len(set(prompts)) == 10
    assert len(folders(tmp_path)) == 1
    del data, row, original
    gc.collect()
    assert folders(tmp_path) == []  # gone with the data


def test_prompts_to_normalise_with_may_be_as_long_as_allowed_and_no_longer(
    demo_model: str, tmp_path: Path
) -> None:
    lengths = {len(ids) for ids in prepared(demo_model, tmp_path).prompts}
    shortest = min(lengths)
    data = prepared(demo_model, tmp_path, longest=shortest)
    assert {len(ids) for ids in data.prompts} == {shortest} and len(data.prompts) <= 5
    with pytest.raises(InputError, match=f"no prompt has at most {shortest - 2} tokens"):
        prepared(demo_model, tmp_path, longest=shortest - 2)


def test_scalar_targets_are_scaled_by_the_training_rows_mean_and_spread(
    demo_model: str, tmp_path: Path
) -> None:
    data = prepared(demo_model, tmp_path, loss_type="scalar_rating")
    batch = data.collator()([data.train[i] for i in range(30)])
    assert batch["target_scores"].mean().item() == pytest.approx(0, abs=1e-5)
    assert batch["target_scores"].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    big = [row | {"scores": [s + 1e9 for s in row["scores"]]} for row in ROWS]
    data = prepared(demo_model, tmp_path, big, loss_type="scalar_rating")
    assert data.collator()([data.train[i] for i in range(30)])["target_scores"].std() > 0.9


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        ({"scores": [0.1, 0.1]}, {"loss_type": "scalar_rating"}, "all scores are 0.1"),
        ({"margin": None}, {"use_margin": True}, "40 rows have no margin"),
        ({"completions": [" a" * 99, " b" * 99]}, {}, "no training row fits 64 tokens"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_and_leaves_no_folder(
    demo_model: str, tmp_path: Path, change: dict, kwargs: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepared(demo_model, tmp_path, [row | change for row in ROWS], **kwargs)
    assert folders(tmp_path) == []


def test_a_margin_that_only_held_out_rows_lack_is_missed_too(
    demo_model: str, tmp_path: Path
) -> None:
    kept = {row["prompt"] for row in prepared(demo_model, tmp_path).rows}
    rows = [row | {"margin": None if row["prompt"] in kept else 1.0} for row in ROWS]
    with pytest.raises(InputError, match="10 rows have no margin"):
        prepared(demo_model, tmp_path, rows, use_margin=True)


def test_words_that_stick_to_the_prompt_are_warned_of(
    demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(demo_model, tmp_path)
    assert "warning" not in capsys.readouterr().out
    prepared(demo_model, tmp_path, [row | {"completions": ["Good.", "Bad."]} for row in ROWS])
    out = capsys.readouterr().out
    assert "warning: 40 rows have no space between prompt and completion" in out
    chat = {"prompt": [{"role": "user", "content": "Hi."}], "completions": ["Good.", "Bad."]}
    mixed = [ROWS[0] | chat | {"margin": 1.0} for _ in range(5)]
    prepared(
        demo_model,
        tmp_path,
        mixed + [row | {"completions": ["Good.", "Bad."]} for row in ROWS],
        template="plain",
    )
    assert "warning: 40 rows" in capsys.readouterr().out


@pytest.mark.slow
def test_a_digest_shows_the_template_by_which_candidates_were_encoded(
    demo_model: str, tmp_path: Path
) -> None:
    """Folds that were trained with another text of the same file would not be told from ours."""
    messages = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    template = tmp_path / "t.jinja"
    found = []
    for name in ("user", "user", "person"):
        template.write_text(
            "{% for m in messages %}" + name + ": {{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %} answer:{% endif %}"
        )
        data = prepared(demo_model, tmp_path, messages, template=str(template))
        found.append(data.digest())
    assert found[0] == found[1] != found[2]


def test_weights_have_the_mean_1_over_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    # A file's lines are one source, as where a folder of files is read.
    rows = [row | {"source": f"harmless:{i}" if i % 4 else "helpful"} for i, row in enumerate(ROWS)]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_comparisons(path, "best", "--comparisons")
    train, _ = split_by_prompt(source.order, 10, seed=0)
    scaled = scaled_weights(source, train, {"helpful": 1.0, "harmless": 3.0})
    assert scaled["harmless"] == pytest.approx(3 * scaled["helpful"])
    total = sum(scaled[str(source_of(row))] for _, row in source.where(train))
    assert total / train.sum() == pytest.approx(1)
    assert scaled_weights(source, train, {}) == {}

    for given, message in (
        ({"helpful": 1.0}, r"c.jsonl:\d+: source: 'harmless' has no weight"),
        ({"helpful": 1.0, "harmless": 2.0, "honest": 1.0}, "no row .* the source 'honest'"),
    ):
        with pytest.raises(InputError, match=message):
            scaled_weights(source, train, given)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(InputError, match=r"c.jsonl:\d+: has no source"):
        scaled_weights(open_comparisons(path, "best", "-"), train, {"helpful": 1.0})


def test_a_source_that_only_a_later_fold_lacks_is_named_with_the_fold(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [row | {"source": "helpful"} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    order = open_comparisons(path, "best", "-").order
    folds = folds_by_prompt(order, 10, 0, 4)

    # The rows of one prompt, which the third fold holds out, are the only ones of their source.
    chosen = ROWS[int(np.flatnonzero(folds[2][1])[0])]["prompt"]
    rows = [row | {"source": "rare"} if row["prompt"] == chosen else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_comparisons(path, "best", "-")
    given = {"helpful": 1.0, "rare": 2.0}
    check_weights(source, folds[:1], given)
    check_weights(source, folds, {})
    with pytest.raises(InputError, match="the source 'rare' in fold 3 of 4 .*--folds 0 leaves"):
        check_weights(source, folds, given)
    with pytest.raises(InputError, match=r"the source 'honest' \(the sources are helpful, rare\)$"):
        check_weights(source, folds, given | {"honest": 1.0})


@pytest.mark.slow
def test_a_rows_weight_reaches_the_batch_and_only_if_weights_are_given(
    demo_model: str, tmp_path: Path
) -> None:
    rows = [row | {"source": "harmless" if i % 4 else "helpful"} for i, row in enumerate(ROWS)]
    data = prepared(demo_model, tmp_path, rows, source_weights=["helpful=1", "harmless=3"])
    scaled = data.facts["source_weights"]
    batch = data.collator()([data.train[i] for i in range(len(data.train))])
    assert sorted(set(batch["weight"].tolist())) == pytest.approx(sorted(scaled.values()))
    assert batch["weight"].mean().item() == pytest.approx(1)
    without = prepared(demo_model, tmp_path, rows)
    assert "weight" not in without.collator()([without.train[0]])
    assert "source_weights" not in without.facts
