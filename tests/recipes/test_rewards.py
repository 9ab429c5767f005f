"""Reward models as a person makes them: convert, train, report, rate."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.data.tables import read_table
from toolkit.errors import InputError
from toolkit.models.roles import Roles
from toolkit.scoring.accuracy import credit
from toolkit.scoring.functions import Lexicon
from toolkit.training.reward.cross_validation import RewardTraining

convert = recipe("convert")
ratings = recipe("ratings")
reward = recipe("reward")
reward_report = recipe("reward_report")

FAST = ["--use_cpu", "--disable_tqdm", "true", "--response_length", "8", "--learning_rate", "2e-3",
        "--per_device_train_batch_size", "8", "--no_check_reload", "--folds", "0"]  # fmt: skip


def comparisons(count: int = 120) -> list[dict[str, Any]]:
    words = ["wonderful", "plain", "terrible"]
    rows = []
    for i in range(count):
        order = [(i + j) % 3 for j in range(3)]
        rows.append(
            {
                "prompt": f"We went to the cafe {i}.",
                "best": order.index(0),
                "completions": [f" The tea was {words[o]}." for o in order],
                "models": [f"model-{o}" for o in order],
                "labeler": "ann",
                "ratings": [[2 - o, 2 - o, 1 - o] for o in order],
                "scores": [2.0 - o for o in order],
            }
        )
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A reward run from a file with two bad rows, and its report with a label curve."""
    out = tmp_path_factory.mktemp("rewards")
    lines = [json.dumps(row) for row in comparisons()]
    long = {
        "prompt": "We went far.",
        "best": 1,
        "completions": [" No.", " Yes." * 60],
        "ratings": [[0, 0], [1, 1]],
    }
    for i in range(0, 100, 10):  # too long for --max_length, wherever they fall
        lines[i:i] = [json.dumps(long | {"prompt": f"We went far {i}."})]
    lines[3:3] = ['{"prompt": "no more"}', '{"prompt": "a", "completions": ["x", "y"], "best": 2}']
    (out / "c.jsonl").write_text("\n".join(lines) + "\n")
    cwd = os.getcwd()
    os.chdir(root)
    try:
        call(
            reward.main,
            [
                "--comparisons",
                str(out / "c.jsonl"),
                "--skip_invalid",
                "--output_dir",
                str(out / "reward"),
                "--eval_rows",
                "40",
                "--num_train_epochs",
                "4",
                "--normalize_samples",
                "16",
                "--max_length",
                "60",
                "--train_fraction",
                "0.5",
                *FAST,
            ],
        )
        write_jsonl(out / "bench.jsonl", bench_of(out / "reward" / "held_out.jsonl"))
        call(
            reward_report.main,
            [
                "--run",
                str(out / "reward"),
                "--label_fractions",
                "0.25",
                "--lexicon",
                "data/lexicon.txt",
                "--reward_bench",
                str(out / "bench.jsonl"),
            ],
        )
    finally:
        os.chdir(cwd)
    return out


def bench_of(held_out: Path) -> list[dict[str, Any]]:
    """The held-out comparisons in RewardBench 2's form."""
    rows = []
    for number, (_, row) in enumerate(read_jsonl(held_out)):
        wrong = list(row["completions"])
        right = wrong.pop(row["best"])
        own = {"id": str(number), "subset": "own", "prompt": row["prompt"]}
        rows.append({**own, "chosen": [right], "rejected": wrong})
    return rows


def test_comparisons_as_a_benchmark_have_the_accuracy_that_they_have_as_comparisons(
    run: Path,
) -> None:
    report = json.loads((run / "reward" / "report" / "reward_report.json").read_text())
    accuracy, bench = report["analysis"]["accuracy"], report["analysis"]["reward_bench"]
    (subset,) = bench["subsets"]
    assert subset["accuracy"]["n"] == accuracy["n"] and bench["left_out"] == 40 - accuracy["n"]
    assert subset["accuracy"]["value"] == bench["mean"] == pytest.approx(accuracy["value"])
    assert "RewardBench 2" in (run / "reward" / "report" / "reward_report.html").read_text()


def test_what_made_the_model_is_written_down(run: Path) -> None:
    facts = json.loads((run / "reward" / "run.json").read_text())
    data = facts["data"]
    assert data["invalid_rows_skipped"] == 2 and data["rows"] == 130
    assert data["rows_too_long"] > 0 and data["max_length"] == 60
    assert facts["arguments"]["skip_invalid"] is True and facts["arguments"]["eval_rows"] == 40
    assert {"torch", "trl", "peft", "python"} <= set(facts["versions"]) and facts["seed"] == 42
    held_out = [row for _, row in read_jsonl(run / "reward" / "held_out.jsonl")]
    assert len(held_out) == 40 > data["held_out_comparisons"]  # some of them did not fit
    assert 35 < data["train_comparisons"] <= 45  # half of the other 90, but for the long ones
    assert not list(run.glob(".tokens-*"))


def test_the_report_repeats_the_runs_accuracy_and_draws_a_curve(
    run: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    metrics = json.loads((run / "reward" / "adapter" / "metrics.json").read_text())
    report = json.loads((run / "reward" / "report" / "reward_report.json").read_text())
    assert report["analysis"]["accuracy"]["value"] == pytest.approx(metrics["accuracy"])
    assert report["analysis"]["metrics"]["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    quarter, whole = report["label_curve"]
    assert quarter["train"] == pytest.approx(0.25 * whole["train"], abs=3)
    assert whole["value"] == metrics["accuracy"] > 0.9
    fits = [
        row
        for _, row in read_jsonl(run / "reward" / "held_out.jsonl")
        if "far" not in row["prompt"]
    ]
    assert report["analysis"]["accuracy"]["n"] == len(fits) == metrics["comparisons"]
    lexicon = Lexicon("data/lexicon.txt").of_texts
    credits = [credit(lexicon(row["completions"]), row["best"], row["completions"]) for row in fits]
    value = report["analysis"]["baselines"]["lexicon"]["value"]
    assert value > 0.6 and value == pytest.approx(sum(credits) / len(credits))
    assert report["analysis"]["people"]["one_rater"] > 0.8
    facts = json.loads((run / "reward" / "adapter" / "toolkit.json").read_text())
    assert report["analysis"]["histogram"]["gain"] == facts["gain"] != 1
    page = (run / "reward" / "report" / "reward_report.html").read_text()
    assert "It has learned what people pick" in page and page.count("<picture") == 5
    assert "data/model (4bit)" in page


def test_a_run_that_was_edited_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    good = json.loads((run / "reward" / "run.json").read_text())
    for change in ({"data": None}, {"metrics": {}}, {"arguments": None}, {"settings": 7}):
        (tmp_path / "run.json").write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=r"run\.json: no '\w+' in it"):
            call(reward_report.main, ["--run", str(tmp_path)])
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"run\.json: not JSON"):
        call(reward_report.main, ["--run", str(tmp_path)])


def test_a_run_whose_data_changed_since_is_not_reported_on(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(
        "toolkit.models.from_arguments.load_base", None
    )  # seen before a model is loaded
    before = (run / "c.jsonl").read_text()
    (run / "c.jsonl").write_text(before + json.dumps(comparisons(1)[0]) + "\n")
    try:
        with pytest.raises(InputError, match="has changed since .* was trained"):
            call(
                reward_report.main,
                [
                    "--run",
                    str(run / "reward"),
                    "--label_fractions",
                    "0.1",
                    "--output_dir",
                    str(tmp_path / "r"),
                ],
            )
    finally:
        (run / "c.jsonl").write_text(before)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "nowhere"], "--run: nowhere/run.json: no such file"),
        (["--label_fractions", "0.1,2"], "label_fractions: must be shares between 0 and 1"),
        (["--label_fractions", "ten"], "label_fractions: must be shares between 0 and 1"),
        (["--lexicon", "nowhere"], "--lexicon: nowhere: no such file"),
    ],
)
def test_a_mistake_is_seen_before_anything_is_scored(
    run: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(root)
    argv = ["--run", str(run / "reward"), "--output_dir", str(tmp_path / "r"), *words]
    with pytest.raises(InputError, match=re.escape(message)):
        call(reward_report.main, argv)
    assert not (tmp_path / "r").exists()


def test_messages_and_parquet_train_under_a_ranking_loss(root: Path, tmp_path: Path) -> None:
    os.chdir(root)
    rows = [
        row
        | {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completions": [c.strip() for c in row["completions"]][: 2 + i % 2],
        }
        for i, row in enumerate(comparisons(60))
    ]
    for row in rows:
        k = len(row["completions"])
        for name in ("models", "ratings", "scores"):
            row[name] = row[name][:k]
        row["ranking"] = sorted(range(k), key=lambda j: -row["scores"][j])
        row["best"] = row["ranking"][0]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(
        convert.main,
        ["--input", str(tmp_path / "c.jsonl"), "--output", str(tmp_path / "c.parquet")],
    )
    metrics = call(reward.main, [
        "--comparisons", str(tmp_path / "c.parquet"), "--output_dir", str(tmp_path / "r"),
        "--eval_rows", "20", "--num_train_epochs", "6", "--normalize_samples", "8",
        "--loss_type", "plackett_luce", "--chat_template", "plain", *FAST,
    ])  # fmt: skip
    assert metrics.accuracy > 0.8 and 1 / 3 < metrics.chance < 1 / 2


CROSS = ["--eval_rows", "8", "--num_train_epochs", "2", "--normalize_samples", "8",
         *FAST[:-2], "--folds", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A reward run of 30 comparisons in three folds, with its report and a curve."""
    out = tmp_path_factory.mktemp("folds")
    os.chdir(root)
    write_jsonl(out / "c.jsonl", comparisons(30))
    call(
        reward.main, ["--comparisons", str(out / "c.jsonl"), *CROSS, "--output_dir", str(out / "r")]
    )
    words = ["--run", str(out / "r"), "--label_fractions", "0.5", "--target_accuracy", "0.99"]
    call(reward_report.main, words)
    return out


@pytest.mark.slow
def test_every_comparison_is_held_out_once_and_the_adapter_is_that_of_no_cross_validation(
    folded: Path, root: Path, tmp_path: Path
) -> None:
    os.chdir(root)
    rows = [row for _, row in read_jsonl(folded / "r" / "cross_validation.jsonl")]
    prompts = [row["row"]["prompt"] for row in rows]
    assert sorted(prompts) == sorted(row["prompt"] for row in comparisons(30))
    assert sorted({(row["fold"], row["train_comparisons"]) for row in rows}) == [
        (1, 22), (2, 19), (3, 19),
    ]  # fmt: skip
    own = [row for _, row in read_jsonl(folded / "r" / "held_out.jsonl")]
    assert [row["row"] for row in rows if row["fold"] == 1] == own

    words = ["--comparisons", str(folded / "c.jsonl"), *CROSS, "--folds", "0"]
    alone = call(reward.main, [*words, "--output_dir", str(tmp_path / "r")])
    assert not (tmp_path / "r" / "cross_validation.jsonl").exists() and alone.folds is None
    for name in ("adapter_model.safetensors", "toolkit.json"):
        one, other = (
            (run / "adapter" / name).read_bytes() for run in (folded / "r", tmp_path / "r")
        )
        assert one == other, name
    metrics = json.loads((folded / "r" / "adapter" / "metrics.json").read_text())
    assert metrics["own"]["accuracy"] == alone.accuracy and metrics["comparisons"] == 30
    right = [credit(row["raw"], row["row"]["best"], row["row"]["completions"]) for row in rows]
    assert metrics["accuracy"] == pytest.approx(sum(right) / 30) and metrics["folds"] == 3


@pytest.mark.slow
def test_the_report_of_a_cross_validation_is_on_all_comparisons(folded: Path) -> None:
    metrics = json.loads((folded / "r" / "adapter" / "metrics.json").read_text())
    report = json.loads((folded / "r" / "report" / "reward_report.json").read_text())
    assert report["analysis"]["accuracy"]["n"] == 30
    assert report["analysis"]["metrics"]["own"] == pytest.approx(metrics["own"])
    assert report["analysis"]["metrics"]["accuracy"] == pytest.approx(metrics["accuracy"])
    assert sum(report["analysis"]["histogram"]["raw"]["counts"]) == 8 * 3  # the adapter's own
    half, whole = report["label_curve"]
    assert (half["train"], whole["train"]) == (10, 20)  # means of 11, 10, 10 and of 22, 19, 19
    assert report["outlook"]["models"] == 3 and len(report["outlook"]["needed"]) == 1
    page = (folded / "r" / "report" / "reward_report.html").read_text()
    assert "cross-validated accuracy, 3 folds" in page and "held-out accuracy" not in page


@pytest.mark.slow
def test_a_killed_cross_validation_goes_on_after_the_folds_that_are_done(
    folded: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    words = ["--comparisons", str(folded / "c.jsonl"), *CROSS, "--output_dir", str(tmp_path / "r")]
    train = RewardTraining.of_fold
    trained: list[int] = []

    def until_killed(self: RewardTraining, *args: Any) -> Any:
        trained.append(args[2])
        if trained == [2, 3]:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(RewardTraining, "of_fold", until_killed)
    with pytest.raises(KeyboardInterrupt) as caught:
        call(reward.main, words)
    assert "the same command continues" in str(caught.value.__notes__)
    assert os.listdir(tmp_path / "r" / "folds_done") == ["fold-2.jsonl"]

    call(reward.main, words)
    assert trained == [2, 3, 3] and "Fold 2 of 3 was trained before" in capsys.readouterr().out
    assert not (tmp_path / "r" / "folds_done").exists()
    for name in ("cross_validation.jsonl", "adapter/metrics.json"):
        assert (tmp_path / "r" / name).read_bytes() == (folded / "r" / name).read_bytes()

    # With other settings no fold is taken over.
    trained[:] = []
    with pytest.raises(KeyboardInterrupt):
        call(reward.main, [*words, "--output_dir", str(tmp_path / "s")])
    trained[:] = [0]
    other = [*words, "--output_dir", str(tmp_path / "s"), "--learning_rate", "1e-3"]
    call(reward.main, other)
    assert trained == [0, 2, 3]


@pytest.mark.slow
def test_an_adapter_is_judged_on_other_comparisons_without_the_prompts_that_it_knows(
    folded: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 30 prompts 22 were trained on. The other 8, and 10 new ones, are judged."""
    os.chdir(root)
    rows = comparisons(40)
    for row in rows:
        row["source"] = "old" if int(row["prompt"].split()[-1][:-1]) < 30 else "new"
    write_jsonl(tmp_path / "b.jsonl", rows)
    words = ["--adapter", str(folded / "r" / "adapter"), "--output_dir", str(tmp_path / "p")]
    analysis = call(reward_report.main, [*words, "--comparisons", str(tmp_path / "b.jsonl")])
    assert "22 comparisons of 40 were left out, because it was trained" in capsys.readouterr().out
    assert {g.group: g.n for g in analysis.by_source} == {"old": 8, "new": 10}
    metrics = json.loads((folded / "r" / "adapter" / "metrics.json").read_text())
    (old,) = (g for g in analysis.by_source if g.group == "old")
    assert old.value == pytest.approx(metrics["own"]["accuracy"])

    # An adapter whose run.json is gone: nobody knows.
    shutil.copytree(folded / "r" / "adapter", tmp_path / "alone" / "adapter")
    words = ["--adapter", str(tmp_path / "alone" / "adapter"), "--output_dir", str(tmp_path / "q")]
    analysis = call(reward_report.main, [*words, "--comparisons", str(tmp_path / "b.jsonl")])
    assert analysis.accuracy.n == 40
    page = (tmp_path / "q" / "reward_report.html").read_text()
    assert "could not be checked" in page and "held-out accuracy" not in page

    # RewardBench 2 alone: its rows with one right answer are the comparisons.
    write_jsonl(tmp_path / "bench.jsonl", bench_of(folded / "r" / "held_out.jsonl"))
    words = ["--adapter", str(folded / "r" / "adapter"), "--output_dir", str(tmp_path / "bench")]
    found = call(reward_report.main, [*words, "--reward_bench", str(tmp_path / "bench.jsonl")])
    assert found.accuracy.n == 8 and found.reward_bench.mean == found.accuracy.value
    write_jsonl(tmp_path / "known.jsonl", [r for r in comparisons(30) if r not in own_rows(folded)])
    with pytest.raises(InputError, match="was trained on all of these prompts"):
        call(
            reward_report.main,
            [*words, "--overwrite", "--comparisons", str(tmp_path / "known.jsonl")],
        )


def own_rows(folded: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(folded / "r" / "held_out.jsonl")]


@pytest.mark.slow
def test_what_is_held_out_may_come_from_a_file_of_its_own(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chdir(root)
    write_jsonl(tmp_path / "c.jsonl", comparisons(24))
    write_jsonl(tmp_path / "e.jsonl", comparisons(30)[20:])
    data = [
        "--comparisons",
        str(tmp_path / "c.jsonl"),
        "--eval_comparisons",
        str(tmp_path / "e.jsonl"),
    ]
    words = [*data, "--output_dir", str(tmp_path / "r"), "--normalize_samples", "0", *FAST[:-2]]
    metrics = call(reward.main, words)
    said = capsys.readouterr().out
    assert "4 comparisons of" in said and "will not be trained on, because" in said
    assert "10 comparisons are held out; a guess is right in 33.3% of them" in said
    assert (metrics.train_comparisons, metrics.comparisons, metrics.folds) == (20, 10, None)
    facts = json.loads((tmp_path / "r" / "run.json").read_text())["data"]
    assert facts["held_out_source"] == str(tmp_path / "e.jsonl")
    with pytest.raises(InputError, match="so none is left to train on"):
        call(reward.main, [*words[:2], "--eval_comparisons", words[1], *FAST[:-2]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "folds: must be 0 (none) or at least 2"),
        (["--folds", "5", "--eval_comparisons", "e"], "folds: has no use beside --eval_comp"),
        (["--eval_rows", "5", "--eval_comparisons", "e"], "eval_rows: has no use beside"),
    ],
)
def test_flags_of_what_is_held_out_that_contradict_each_other_are_refused(
    words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call(reward.main, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--comparisons", "b"], "comparisons: is for --adapter"),
        (["--adapter", "a"], "adapter: needs --comparisons or --reward_bench"),
        (["--adapter", "a", "--run", "r"], "adapter: is in place of --run"),
        (["--adapter", "a", "--comparisons", "b", "--label_fractions", "0.5"],
         "label_fractions: needs the --run"),
        (["--target_accuracy", "0.5"], "target_accuracy: needs the curve"),
        (["--adapter", "nowhere", "--comparisons", "b", "--output_dir", "nowhere"],
         "--adapter: nowhere: there is no adapter_config.json"),
    ],
)  # fmt: skip
def test_a_report_on_an_adapter_says_what_it_needs(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        call(reward_report.main, words)


def test_ratings_as_scores_train_a_reward_model(root: Path, tmp_path: Path) -> None:
    os.chdir(root)
    rows = [
        {n: v for n, v in row.items() if n != "scores"}
        | {"ranking": sorted(range(3), key=lambda j: -row["scores"][j])}
        for row in comparisons(60)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(
        ratings.main,
        ["--comparisons", str(tmp_path / "c.jsonl"), "--scores", str(tmp_path / "s.jsonl")],
    )
    metrics = call(reward.main, [
        "--comparisons", str(tmp_path / "s.jsonl"), "--output_dir", str(tmp_path / "r"),
        "--eval_rows", "20", "--num_train_epochs", "6", "--normalize_samples", "0",
        "--loss_type", "scalar_rating", *FAST,
    ])  # fmt: skip
    assert metrics.accuracy > 0.8
    facts = json.loads((tmp_path / "r" / "adapter" / "toolkit.json").read_text())
    assert (facts["gain"], facts["bias"]) == (1.0, 0.0)


def test_models_are_rated_and_the_table_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "c.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in comparisons()) + "no row\n")
    for method in ("plackett_luce", "bradley_terry", "elo"):
        output = tmp_path / f"{method}.json"
        call(
            ratings.main,
            [
                "--comparisons",
                str(source),
                "--skip_invalid",
                "--method",
                method,
                "--resamples",
                "20",
                "--output",
                str(output),
            ],
        )
        table = json.loads(output.read_text())
        assert table["method"] == method
        first, *others = table["ratings"]
        assert first["name"] == "model-0" and first["wins"] == first["contests"] == 120
        assert all(first["rating"] > other["rating"] + 100 for other in others)
    assert "model-0" in capsys.readouterr().out


def test_what_needs_no_gradient_is_passed_in_batches_of_batch_size(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    rows: list[int] = []
    score = Roles.scores

    def scores(self: Roles, ids: Tensor, mask: Tensor) -> Tensor:
        rows.append(len(ids))
        return score(self, ids, mask)

    monkeypatch.setattr(Roles, "scores", scores)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in comparisons(20)))
    words = ["--comparisons", str(tmp_path / "c.jsonl"), "--max_steps", "1", *FAST]
    words += ["--normalize_samples", "16"]

    facts = []
    for name, more in (("default", []), ("small", ["--batch_size", "5"])):
        rows.clear()
        out = tmp_path / name
        call(reward.main, [*words, *more, "--output_dir", str(out)])
        facts.append(json.loads((out / "adapter" / "toolkit.json").read_text()))
        # 4 held-out comparisons of 3 candidates, and 16 samples.
        assert max(rows) == (5 if more else 16) and sum(rows) >= 12 + 16

    assert facts[0]["gain"] == pytest.approx(facts[1]["gain"], rel=1e-4)


@pytest.mark.parametrize("truncated", [True, False])
def test_the_normalizing_samples_are_cut_when_asked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncated: bool
) -> None:
    monkeypatch.chdir(root)
    seen: dict[str, Any] = {}

    def spy(*args: Any, **kwargs: Any) -> dict[str, float]:
        seen.update(kwargs)
        return {"gain": 1.0, "bias": 0.0}

    monkeypatch.setattr("toolkit.training.reward.trainer.normalize", spy)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in comparisons(20)))
    flag = ["--normalize_truncated"] if truncated else []
    call(
        reward.main,
        [
            "--comparisons",
            str(tmp_path / "c.jsonl"),
            "--max_steps",
            "1",
            "--output_dir",
            str(tmp_path / "r"),
            *flag,
            *FAST,
        ],
    )
    assert seen["whole"] is not truncated
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["data"]["held_out_comparisons"] == 4  # a fifth, since no --eval_rows was given


def test_converting_says_what_was_done_to_rows_and_takes_labels_from_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "c.jsonl", tmp_path / "o.jsonl"
    again = ["Name a fruit. A plum.", "Name a fruit. A fig."]
    rows = [{"prompt": "Name a fruit.", "completions": again, "best": best} for best in (1, 2)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["--input", str(source), "--output", str(out)]
    with pytest.raises(InputError, match="--first 1"):
        call(convert.main, [*args, "--skip_invalid"])
    with pytest.raises(InputError, match="first is 2, but must be 0 or 1"):
        call(convert.main, [*args, "--first", "2"])
    assert not out.exists()
    capsys.readouterr()
    call(convert.main, [*args, "--first", "1"])
    assert "2 rows whose completions repeat the prompt, which was cut" in capsys.readouterr().out
    assert [row["best"] for _, row in read_table(out, "--input")] == [0, 1]
    call(convert.main, [*args, "--first", "1", "--repeated_prompt", "keep", "--overwrite"])
    assert [row["completions"] for _, row in read_table(out, "--input")] == [again, again]


def test_comparisons_go_to_pairs_and_csv_comes_in(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('prompt,sample0,sample1,best\nHi., a," b, c",1\nHo., d, d,0\n')
    with pytest.raises(InputError, match=r"c\.csv:3: completions: all 2 are ' d'"):
        call(
            convert.main,
            ["--input", str(tmp_path / "c.csv"), "--output", str(tmp_path / "p.jsonl")],
        )
    assert not (tmp_path / "p.jsonl").exists()
    call(
        convert.main,
        [
            "--input",
            str(tmp_path / "c.csv"),
            "--output",
            str(tmp_path / "p.jsonl"),
            "--to",
            "pairs",
            "--skip_invalid",
        ],
    )
    ((_, pair),) = read_table(tmp_path / "p.jsonl", "--input")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("Hi.", " b, c", " a")


def test_a_missing_space_is_told_before_a_reward_model_learns_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "c.csv", tmp_path / "o.jsonl"
    source.write_text("prompt,chosen,rejected\nHi there.,Yes,No\nHi again.,No,Yes\n")
    args = ["--input", str(source), "--output", str(out), "--overwrite"]
    call(convert.main, args)
    assert "warning: 2 rows have no space" in capsys.readouterr().out
    call(convert.main, [*args, "--add_space"])
    assert "warning" not in capsys.readouterr().out
    rows = [row for _, row in read_table(out, "--input")]
    assert [row["completions"][row["best"]] for row in rows] == [" Yes", " No"]
