"""head_to_head.py: texts of two models, votes of three people, and the table."""

from pathlib import Path

import pytest

from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store
from toolkit.pipeline.stages import Stage
from toolkit.scoring.functions import Lexicon
from toolkit.scoring.picker import ScorePicker

main = recipe("head_to_head").main


def test_people_vote_and_the_same_command_counts_the_majority(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        "prompts: demo:prompts.heldout.jsonl\nlexicon: demo:lexicon.txt\nlimit: 8\n"
        "precision: fp32\ntruncate_token: '.'\ntruncate_after: 12\n"
    )
    out = tmp_path / "out"
    words = ["--contenders", "best=best_of_8", "--evaluate_config", str(config), "--items", "6"]
    words += ["--output_dir", str(out), "--count_only", "--votes", "3"]
    result = call(main, words)
    (pair,) = [pair for pair in result.pairs if pair.judge == "people"]
    assert pair.judged <= 1  # equal texts are a tie without asking

    # Two people like what the word list likes, one likes the opposite: the majority counts.
    taste = Lexicon(str(root / "data" / "lexicon.txt"))

    def against(prompts: list[str], completions: list[str]) -> list[float]:
        return [-score for score in liked(prompts, completions)]

    def liked(prompts: list[str], completions: list[str]) -> list[float]:
        return taste.of_texts(completions)

    with Store(out / "matches.sqlite") as store:
        for name, scores in {"ann": liked, "bob": liked, "eve": against}.items():
            ScriptedLabeler(name, ScorePicker(scores)).work(store, progress=False)
        assert store.progress()["left"] == 0

    capsys.readouterr()
    result = call(main, words)
    said = capsys.readouterr().out
    (pair,) = [pair for pair in result.pairs if pair.judge == "people"]
    (by_list,) = [pair for pair in result.pairs if pair.judge == "lexicon"]
    assert pair.wins + pair.ties + pair.losses == 6 and pair.not_judged == 0
    assert pair.wins >= 4 and by_list.wins >= pair.wins  # best-of-8 by the list itself
    assert "already done" in said and "best : reference" in said
    assert "missing" not in said and "report --evaluation" in said

    # More items of the same texts join them, with three votes wanted each; no vote is lost.
    texts = (out / "samples" / "samples.jsonl").read_bytes()
    more = [*words, "--items", "8"]
    result = call(main, more)
    (pair,) = [pair for pair in result.pairs if pair.judge == "people"]
    assert pair.wins + pair.ties + pair.losses + pair.not_judged == 8
    assert 1 <= pair.not_judged <= 2  # equal texts are a tie without asking
    with Store(out / "matches.sqlite") as store:
        votes = store.progress()
    assert votes["left"] == 3 * pair.not_judged
    assert (out / "samples" / "samples.jsonl").read_bytes() == texts
    said = capsys.readouterr().out
    assert f"{votes['left']:.0f} of {votes['wanted']:.0f} votes are missing" in said
    assert "next: " in said and "--count_only" not in said.partition("next: ")[2].splitlines()[0]

    # Other texts cannot join them. What is proposed is not what is refused with votes there.
    with pytest.raises(InputError, match="another contenders .* name another --output_dir") as told:
        call(main, [*more, "--contenders", "best=best_of_4"])
    assert "overwrite" not in str(told.value)


def test_more_items_than_the_config_writes_are_written_and_too_few_prompts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, config = tmp_path / "prompts.jsonl", tmp_path / "evaluate.yaml"
    prompts.write_text("".join(f'{{"prompt": "We saw the {x} museum."}}\n' for x in "abcd"))
    config.write_text(f"prompts: {prompts}\nlimit: 2\nprecision: fp32\nresponse_length: 2\n")
    words = ["--contenders", "same=demo:model", "--evaluate_config", str(config), "--count_only"]
    result = call(main, [*words, "--items", "5", "--output_dir", str(tmp_path / "out")])
    assert result.prompts == 4
    assert "there are 4 prompts, not 5" in capsys.readouterr().out


def test_votes_are_not_thrown_away_and_a_contender_is_needed(tmp_path: Path) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text("prompts: demo:prompts.heldout.jsonl\n")
    words = ["--evaluate_config", str(config), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="contenders: missing"):
        call(main, words)
    (tmp_path / "out").mkdir(exist_ok=True)
    Store(tmp_path / "out" / "matches.sqlite").close()
    with pytest.raises(InputError, match="holds texts that people vote on"):
        call(main, [*words, "--overwrite", "--contenders", "best=best_of_2"])


def test_votes_do_not_count_for_an_adapter_that_was_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = tmp_path / "evaluate.yaml", tmp_path / "asked.jsonl"
    config.write_text(f"prompts: {asked}\n")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"as it was")
    kept: list[Stage] = []

    def stop(stages: list[Stage], *_: object, **__: object) -> None:
        kept.extend(stages)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe("head_to_head"), "run_stages", stop)
    words = ["--evaluate_config", str(config), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(KeyboardInterrupt):
        call(main, [*words, "--contenders", f"ppo={weights.parent}", "best=best_of_2"])
    assert kept[0].given == {"prompts": asked, "contenders ppo": weights}
