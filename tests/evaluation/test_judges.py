"""Judges: their specs, what scorers and reward adapters say, people by way of the store."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.judges import (
    AskJudge,
    PeopleJudge,
    ScoreJudge,
    judge_all,
    load_judges,
    pairs_of,
    reranker,
)
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.scoring.arguments import parse_specs
from toolkit.scoring.functions import as_scorer
from toolkit.scoring.picker import ScorePicker
from toolkit.scoring.reward_models import RewardAdapter

Make = Callable[..., Any]


def parse_judges(specs: list[str], base: str, precision: str) -> list[Any]:
    return list(load_judges(parse_specs(specs, "judges"), base, precision))


@pytest.fixture(scope="module")
def reward_adapter(reward_adapters: list[str]) -> list[str]:
    """Two reward adapters with heads of their own, gain and bias."""
    return reward_adapters[:2]


def test_specs_are_read(root: Path, demo_model: str, reward_adapter: list[str]) -> None:
    judges = parse_judges(
        [
            f"l=lexicon:{root}/data/lexicon.txt",
            "f=function:operator:add",
            f"r=reward_adapter:{reward_adapter[0]}",
            "h=http:qwen@http://127.0.0.1:9/v1",
        ],
        demo_model,
        "fp32",
    )
    assert [j.kind for j in judges] == ["lexicon", "function", "reward_adapter", "http"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [("x", "not NAME=KIND:VALUE"), ("x=magic:y", "with a KIND of lexicon"),
     ("x=http:model", "not MODEL@URL"), ("x=lexicon:nowhere.txt", "no such file"),
     ("x=reward_adapter:nowhere", "judges: x: nowhere has no adapter_config")],
)  # fmt: skip
def test_a_mistake_in_a_spec_is_one_line(spec: str, message: str, demo_model: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_judges([spec], demo_model, "fp32")
    assert "\n" not in str(caught.value)


def test_several_reward_adapters_on_one_base_score_as_each_does_alone(
    new_sampling: Make, demo_model: str, reward_adapter: list[str]
) -> None:
    sampling = new_sampling()
    outputs = sampling.write(Contender("r", "reference"), [], None)
    assert outputs.ids is not None
    for folder in [*reward_adapter, reward_adapter[0]]:
        found = ScoreJudge("r", "reward_adapter", RewardAdapter(folder)).score(sampling, outputs)
        alone = Roles(load_base(demo_model, "fp32"), reward_adapter=folder)
        for prompt, ids, score in zip(sampling.prompts, outputs.ids, found, strict=True):
            row = torch.tensor([prompt + ids])
            expected = alone.scores(row, torch.ones_like(row, dtype=torch.bool))
            assert score == pytest.approx(expected.item(), abs=1e-4)
    texts_only = Outputs(outputs.texts, None, None, outputs.tokens)
    judge = ScoreJudge("r", "reward_adapter", RewardAdapter(reward_adapter[0]))
    assert judge.score(sampling, texts_only) == pytest.approx(
        judge.score(sampling, outputs), abs=1e-4
    )


def test_functions_get_the_columns_of_their_prompts(new_sampling: Make) -> None:
    sampling = new_sampling()
    sampling.prompts.columns = {"weight": [1.0, 2.0, 3.0]}

    def weighed(prompts: list[str], completions: list[str], weight: list[float]) -> list[float]:
        assert prompts == ["It rained.", "We went to the market."]
        return weight

    judge = ScoreJudge("w", "function", as_scorer(weighed))
    outputs = Outputs(["a", "b"], None, None, [1, 1])
    assert judge.score(sampling, outputs, [2, 0]) == [3.0, 1.0]
    assert reranker([judge], None) is judge.scorer is reranker([judge], "w")


def test_pairs_with_the_reference_or_all() -> None:
    assert list(pairs_of(["r", "a", "b"], "reference")) == [("a", "r"), ("b", "r")]
    assert list(pairs_of(["r", "a", "b"], "all")) == [("a", "r"), ("b", "r"), ("b", "a")]


class First:
    """Stands for an HTTP judge: likes the text that sorts first; "?" gets no answer."""

    asked = 0
    refusal = "'Hm'"

    def doubt(self) -> str | None:
        return None

    def best(self, prompt: Any, completions: list[str]) -> list[int]:
        self.asked += 1
        return [] if "?" in completions else [completions.index(min(completions))]


def test_a_judge_who_picks_is_asked_once_a_pair_and_not_about_equal_texts(
    new_sampling: Make,
) -> None:
    sampling = new_sampling()
    contenders = [Contender("r", "reference"), Contender("a", "model", "x")]
    outputs = {
        "r": Outputs(["b", "b", "?"], None, None, []),
        "a": Outputs(["a", "b", "c"], None, None, []),
    }
    judge: Any = First()
    scores, verdicts = judge_all(
        [AskJudge("h", judge)], sampling, contenders, outputs, "reference", 100
    )
    assert scores == {} and verdicts == {"h": {("a", "r"): [1, 0, None]}} and judge.asked == 2


def test_people_judge_by_the_store_blind_and_what_is_left_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = PeopleJudge("people", str(tmp_path / "m.sqlite"))
    questions = [("p", "good", "bad"), ("p", "bad", "good"), ("q", "good", "so so"),
                 ("q", "same", "same")]  # fmt: skip
    assert judge.verdicts(questions) == [None, None, None, 0]
    assert "1 of 4 pairs are judged" in capsys.readouterr().out

    def taste(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(c == "good") for c in completions]

    with Store(tmp_path / "m.sqlite") as store:
        task = store.next_task(store.script("ann"))
        assert task is not None and sorted(task.completions) == task.completions  # no order leaks
        ScriptedLabeler("ann", ScorePicker(taste)).work(store, limit=1, progress=False)
    assert sum(v is None for v in judge.verdicts(questions)) in (1, 2)
    with Store(tmp_path / "m.sqlite") as store:
        ScriptedLabeler("ann", ScorePicker(taste)).work(store, progress=False)
        assert list(store.picks()) == []  # matches are not trained on
    assert judge.verdicts(questions) == [1, -1, 1, 0]
    assert len(capsys.readouterr().out.splitlines()) == 1  # nothing left: nothing said


def test_the_majority_of_the_people_who_are_asked_counts(tmp_path: Path) -> None:
    judge = PeopleJudge("people", str(tmp_path / "m.sqlite"), votes=3)
    questions = [("p", "good", "bad"), ("q", "bad", "good")]
    judge.verdicts(questions)

    def good(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(c == "good") for c in completions]

    def bad(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(c == "bad") for c in completions]

    with Store(tmp_path / "m.sqlite") as store:
        assert store.progress()["wanted"] == 6
        for name, taste in {"ann": good, "bob": bad, "eve": bad, "late": good}.items():
            ScriptedLabeler(name, ScorePicker(taste)).work(store, progress=False)
        assert len(list(store.said("match"))) == 6  # the fourth found nothing left to do
    assert judge.verdicts(questions) == [-1, 1]


def test_a_judge_without_any_answer_gives_no_table() -> None:
    judge: Any = First()
    questions = [("p", "a?", "?"), ("p", "same", "same"), ("q", "?", "b")]
    with pytest.raises(InputError, match="judges: h: gave no answer on any of 2 pairs.*'Hm'"):
        AskJudge("h", judge).verdicts(questions)
    assert AskJudge("h", judge).verdicts([*questions, ("q", "a", "b")]) == [None, 0, None, 1]


def test_a_judge_whose_letters_are_doubtful_is_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge: Any = First()
    judge.doubt = lambda: "it said A too often"
    AskJudge("h", judge).verdicts([("q", "a", "b")])
    assert capsys.readouterr().out == "warning: h: it said A too often\n"


def test_judges_are_asked_as_the_arguments_say(demo_model: str) -> None:
    from toolkit.evaluation.arguments import EvaluationArguments

    args = EvaluationArguments(
        judges=["h=http:m@http://127.0.0.1:9/v1"],
        judge_max_tokens=99,
        judge_timeout=7.0,
        judge_patience=3,
    )
    (judge,) = args.load_judges(demo_model, "fp32")
    asked = judge.picker  # type: ignore[union-attr]
    assert (asked.max_tokens, asked._endpoint.timeout, asked.patience) == (99, 7.0, 3)


@pytest.mark.parametrize(
    ("path", "said"),
    [("no.sqlite", "not an SQLite file"), ("/proc/x/matches.sqlite", "No such file"),
     ("a folder", "cannot be opened")],
)  # fmt: skip
def test_a_store_for_people_is_tried_before_anything_is_sampled(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("no.sqlite").write_text("no database" * 100)
    Path("a folder").mkdir()
    with pytest.raises((InputError, OSError), match=said):
        parse_judges([f"people=people:{path}"], "base", "fp32")


def test_a_store_that_cannot_be_written_is_told_of_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "matches.sqlite"
    parse_judges([f"people=people:{path}"], "base", "fp32")
    assert not path.exists()  # an empty store is nothing that anybody asked for
    Store(path).close()
    parse_judges([f"people=people:{path}"], "base", "fp32")

    def read_only(database: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("toolkit.labeling.store.database.Database.writing", read_only)
    with pytest.raises(InputError, match="judges: people: .*cannot be written"):
        parse_judges([f"people=people:{path}"], "base", "fp32")


def test_a_score_that_is_no_number_is_the_judges_fault_by_name(
    new_sampling: Make, reward_adapter: list[str]
) -> None:
    sampling = new_sampling()
    outputs = sampling.write(Contender("r", "reference"), [], None)
    judge = ScoreJudge("rm", "reward_adapter", RewardAdapter(reward_adapter[0], title="judges: rm"))
    assert len(judge.score(sampling, outputs)) == len(outputs.texts)
    sampling.roles.reward_head.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match=r"judges: rm scored .* as .*broken"):
        judge.score(sampling, outputs)
