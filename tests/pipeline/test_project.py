"""A project's stages: their order, what each is told, and when people must label."""

from pathlib import Path

import pytest

from toolkit.cli import bind, call, changed, recipe
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.errors import InputError
from toolkit.labeling.store import Settings, Store
from toolkit.pipeline.project import AFTER, names_of, note_files, stages_of_project, waiting
from toolkit.pipeline.stages import Stage
from toolkit.project import STAGES, Project

PEOPLE = "prompts: p.txt\nsample:\nlabel:\nreward:\nppo:\nevaluate:\nreport:\n"
PICKS = "comparisons: picks.csv\nreward:\n  eval_rows: 20\nppo:\nevaluate:\n"


def project(tmp_path: Path, text: str) -> Project:
    path = tmp_path / "project.yaml"
    path.write_text(f"folder: {tmp_path}/out\n{text}")
    return Project.read(path)


def test_the_stages_run_in_their_order_and_those_that_go_unsaid_are_there(tmp_path: Path) -> None:
    assert set(AFTER) == set(STAGES)
    for stage, before in AFTER.items():
        assert all(STAGES.index(name) < STAGES.index(stage) for name in before)
    assert names_of(project(tmp_path, PEOPLE)) == [
        *("split", "sample", "label", "reward", "ppo", "evaluate", "report"),
    ]
    assert names_of(project(tmp_path, PICKS)) == ["convert", "split", "reward", "ppo", "evaluate"]
    assert names_of(project(tmp_path, "comparisons: c\nreward:\n")) == ["convert", "reward"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward:\n", r"yaml:2: reward has nothing to learn from"),
        ("ppo:\n", r"neither prompts nor comparisons are named"),
        ("doctor:\n", r"no section of a stage to run"),
        ("prompts: p\nlabel:\nreward:\n", r"yaml:3: label has nothing to label"),
        ("comparisons: c\nsample:\nlabel:\n", r"yaml:2: comparisons are named, and the section"),
        ("comparisons: OUT/comparisons.jsonl\nreward:\n", r"yaml:2: .* the project's own copy"),
    ],
)
def test_a_project_that_cannot_run_says_what_it_lacks(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        names_of(project(tmp_path, text.replace("OUT", f"{tmp_path}/out")))


def test_a_stage_is_told_what_a_person_would_tell_it_by_flags(tmp_path: Path) -> None:
    made = {s.name: s for s in stages_of_project(project(tmp_path, f"stop_token: none\n{PICKS}"))}
    out = tmp_path / "out"
    by_hand = {
        "convert": ["--input", "picks.csv", "--output", f"{out}/comparisons.jsonl"],
        "reward": ["--comparisons", f"{out}/comparisons.jsonl", "--output_dir", f"{out}/reward",
                   "--eval_rows", "20", "--stop_token", "none"],
        "ppo": ["--prompts", f"{out}/prompts.jsonl", "--output_dir", f"{out}/ppo",
                "--reward_adapter", f"{out}/reward/adapter", "--stop_token", "none"],
    }  # fmt: skip
    for name, words in by_hand.items():
        assert made[name].settings() == changed(*bind(recipe(name).main, words)), name
    assert made["ppo"].resumes and not made["reward"].resumes
    assert made["reward"].made == [out / "reward" / "adapter"]


def test_a_stage_that_starts_from_another_ones_adapter_runs_after_it(tmp_path: Path) -> None:
    start = f"{tmp_path}/out/sft/adapter"
    text = f"comparisons: c\npolicy_adapter: {start}\nsft:\nreward:\n"
    stages = {stage.name: stage for stage in stages_of_project(project(tmp_path, text))}
    assert list(stages) == ["convert", "sft", "reward"]
    assert "sft" in (stages["reward"].after or ())
    assert "policy_adapter" not in stages["sft"].settings()
    assert stages["reward"].settings()["start_adapter"] == start


def test_models_that_sample_together_are_waited_for_and_their_weights_are_known(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_model.safetensors").write_bytes(b"as it was")
    text = f"prompts: p.txt\nsft:\n  demonstrations: d.jsonl\nsample:\n  models: [a={other}, "
    text += f"b={tmp_path}/out/sft/adapter, plain=base]\n  completions: 6\n"
    stages = {stage.name: stage for stage in stages_of_project(project(tmp_path, text))}
    assert list(stages) == ["split", "sft", "sample"]
    assert "sft" in (stages["sample"].after or ())
    assert stages["sample"].given == {"models a": other / "adapter_model.safetensors"}

    # What the project makes itself is told by its stage, even if it is there already.
    made = tmp_path / "out" / "sft" / "adapter"
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"made")
    again = {stage.name: stage for stage in stages_of_project(project(tmp_path, text))}
    assert again["sample"].given == stages["sample"].given


def test_adapters_that_no_stage_makes_are_known_by_their_weights(tmp_path: Path) -> None:
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("start", "other")]
    for path in weights:
        path.parent.mkdir()
        path.write_bytes(b"as it was")
    start, other = (path.parent for path in weights)
    text = f"comparisons: c\npolicy_adapter: {start}\nreward:\nppo:\n"
    stages = {stage.name: stage for stage in stages_of_project(project(tmp_path, text))}
    assert stages["reward"].given["start_adapter"] == weights[0]
    assert stages["ppo"].given["policy_adapter"] == weights[0]
    assert "reward_adapter" not in stages["ppo"].given  # stage reward makes it
    before = stages["ppo"].digests()
    weights[0].write_bytes(b"trained anew")
    assert stages["ppo"].digests() != before

    text = f"prompts: p\nppo:\n  reward_adapter: {start},{other}\n"
    (ppo,) = [s for s in stages_of_project(project(tmp_path, text)) if s.name == "ppo"]
    assert {path for name, path in ppo.given.items() if "reward" in name} == {*weights}


def test_contenders_are_known_by_their_weights_however_they_are_mixed(tmp_path: Path) -> None:
    made, mine, other = (tmp_path / name / "adapter" for name in ("sft", "mine (old)", "other"))
    for folder in (made, mine, other):
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"")
    told = [f"sft={made}", f"half={other}*0.5", f"mean=mean({made},{other})", f"mine={mine}",
            "best=best_of_4", "far=org/model"]  # fmt: skip
    stages = [Stage("sft", "", recipe("sft").main, [], [made]),
              Stage("evaluate", "", recipe("evaluate").main,
                    ["--contenders", *told, "--judges", f"rm=reward_adapter:{other}"])]  # fmt: skip
    note_files(stages)
    found = {k: v.parent for k, v in stages[1].given.items() if k.startswith(("cont", "judges"))}
    assert found == {
        "contenders half": other, "contenders mean 1": other, "contenders mine": mine,
        "judges rm": other,
    }  # fmt: skip


def test_people_are_waited_for_until_all_is_answered_or_enough_is(tmp_path: Path) -> None:
    found = project(tmp_path, PEOPLE)
    rows = [{"prompt": f"p{i}", "completions": ["a", "b"]} for i in range(3)]
    write_jsonl(tmp_path / "out" / "samples.jsonl", rows)
    told = waiting(found, enough=False)
    assert told is not None and "0 of 3 items have an answer, and 0 a pick" in told
    assert f"label --config {found.path}" in told and f"run {found.path}" in told
    assert "for people elsewhere add --https --public_host NAME" in told
    served = project(tmp_path, PEOPLE.replace("label:", "label:\n  public_host: [a.example.org]"))
    assert "elsewhere" not in str(waiting(served, enough=False))
    assert waiting(found, enough=True) is not None  # no pick at all is not enough

    with Store(found.store, Settings()) as store:
        store.add_items(rows)
        ann = store.script("ann")
        for number, answer in enumerate(("pick", "skip", "pick")):
            task = store.next_task(ann)
            assert task is not None
            store.record(ann, task.form, answer, 0 if answer == "pick" else None)
            more = waiting(found, enough=False)
            assert (more is None) == (number == 2)
            assert waiting(found, enough=True) is None
    limited = project(tmp_path, PEOPLE.replace("label:", "label:\n  limit: 2"))
    assert waiting(limited, enough=False) is None


def test_the_files_of_ones_own_are_known_and_those_of_the_project_are_not_among_them(
    tmp_path: Path,
) -> None:
    text = "eval_prompts: e.txt\nsft:\n  demonstrations: d.jsonl\n"
    made = {s.name: s for s in stages_of_project(project(tmp_path, PICKS + text))}
    assert {name: stage.given for name, stage in made.items() if stage.given} == {
        "convert": {"input": Path("picks.csv")},
        "split": {"eval_prompts": Path("e.txt")},
        "sft": {"demonstrations": Path("d.jsonl")},
    }


@pytest.mark.parametrize("picks", ["", "  judge_url: http://localhost:1/v1\n  judge_model: m\n"])
def test_picks_of_samples_that_are_gone_are_not_learned_from(tmp_path: Path, picks: str) -> None:
    found = project(tmp_path, PEOPLE.replace("label:\n", f"label:\n{picks}"))
    label = next(stage for stage in stages_of_project(found) if stage.name == "label")
    assert label.waits is not None
    old, new = ([{"prompt": "p", "completions": [text, "b"]}] for text in ("old", "new"))
    with Store(found.store, Settings()) as store:
        store.add_items(old)
        ann = store.script("ann")
        task = store.next_task(ann)
        assert task is not None
        store.record(ann, task.form, "pick", 0)

    write_jsonl(tmp_path / "out" / "samples.jsonl", old)
    assert label.waits() is None
    write_jsonl(tmp_path / "out" / "samples.jsonl", old + new)
    said = label.waits()
    assert said is None if picks else said is not None and "1 of 2 items have an answer" in said
    write_jsonl(tmp_path / "out" / "samples.jsonl", new)
    with pytest.raises(InputError, match=r"store: .* has 1 items \(1 with an answer\) that are no"):
        label.waits()


def test_no_policy_learns_from_comparisons_on_the_prompts_that_it_is_compared_on(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"p{i % 8}", "completions": ["a", "b"], "best": 0} for i in range(16)]
    write_jsonl(tmp_path / "picks.jsonl", rows)
    text = f"comparisons: {tmp_path}/picks.jsonl\n" + "prompt_form: '{prompt}!'\n"
    found = project(tmp_path, text + "reward:\ndpo:\nsft:\nevaluate:\n")
    made = {stage.name: stage for stage in stages_of_project(found)}
    for name in ("convert", "split"):
        call(made[name].main, made[name].words)

    out = tmp_path / "out"
    kept = [row for _, row in read_jsonl(out / "comparisons.policy.jsonl")]
    held_out = {row["prompt"] for _, row in read_jsonl(out / "prompts.heldout.jsonl")}
    assert len(held_out) == 2 and len(kept) == 12
    assert not held_out & {row["prompt"].rstrip("!") + "!" for row in kept}
    for name in ("dpo", "sft"):
        assert made[name].settings()["comparisons"] == f"{out}/comparisons.policy.jsonl"
        assert "split" in (made[name].after or ())
    assert made["reward"].settings()["comparisons"] == f"{out}/comparisons.jsonl"
    assert out / "comparisons.policy.jsonl" in made["split"].made


@pytest.mark.parametrize("own", ["demonstrations: demo.jsonl", "text: texts.jsonl"])
def test_a_stage_with_data_of_its_own_needs_no_comparisons(tmp_path: Path, own: str) -> None:
    text = f"prompts: p\nsft:\n  {own}\nppo:\n  lexicon: demo:lexicon.txt\n"
    assert names_of(project(tmp_path, text)) == ["split", "sft", "ppo"]


def test_samples_are_of_the_adapter_that_an_earlier_stage_makes(tmp_path: Path) -> None:
    start = f"{tmp_path}/out/sft/adapter"
    sft = "sft:\n  demonstrations: demo.jsonl\n"
    found = project(tmp_path, f"policy_adapter: {start}\n{sft}{PEOPLE}")
    stages = {stage.name: stage for stage in stages_of_project(found)}
    assert list(stages)[:4] == ["split", "sft", "sample", "label"]
    assert stages["sft"].after == () and "sft" in (stages["sample"].after or ())
    assert "sample" in (stages["label"].after or ())
    with pytest.raises(InputError, match="no order can be kept"):  # sft would learn from its picks
        stages_of_project(project(tmp_path, f"policy_adapter: {start}\nsft:\n{PEOPLE}"))


def test_columns_are_those_of_the_prompts_if_there_are_no_comparisons(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "prompt,Question\n" + "".join(f"{i},question {i}\n" for i in range(8))
    )
    text = f"prompts: {tmp_path}/p.csv\ncolumns: {{prompt: Question}}\n"
    split = stages_of_project(project(tmp_path, text + "sample:\n"))[0]
    call(split.main, split.words)
    rows = [row for _, row in read_jsonl(tmp_path / "out" / "prompts.jsonl")]
    assert rows and all(row["prompt"].startswith("question ") for row in rows)

    picks = project(tmp_path, f"{PICKS}columns: {{prompt: Question}}\n")
    made = {stage.name: stage.settings() for stage in stages_of_project(picks)}
    assert "columns" in made["convert"] and "columns" not in made["split"]


CHAT = "response_length: 32\nstop_token: eos\n" + PEOPLE


@pytest.mark.parametrize(
    ("ppo", "sampled", "refused"),
    [
        ("  missing_eos_penalty: 1.0\n", {"drawn": 40, "ended": 0}, True),
        ("  missing_eos_penalty: 1.0\n", {"drawn": 40, "ended": 1}, False),
        ("  missing_eos_penalty: 1.0\n", {"drawn": 0, "ended": 0}, False),  # none has to end
        ("", {"drawn": 40, "ended": 0}, False),  # sample itself has warned
    ],
)
def test_people_are_not_asked_about_samples_that_never_end_if_an_end_is_priced(
    tmp_path: Path, ppo: str, sampled: dict[str, int], refused: bool
) -> None:
    found = project(tmp_path, CHAT.replace("ppo:\n", f"ppo:\n{ppo}"))
    sample = next(stage for stage in stages_of_project(found) if stage.name == "sample")
    assert sample.check is not None
    if not refused:
        sample.check(sampled)
        return
    with pytest.raises(InputError, match=r"yaml:9: ppo takes 1 off .* none of 40 samples ends by"):
        sample.check(sampled)


def test_items_that_were_uploaded_are_refused_with_the_way_to_learn_from_them(
    tmp_path: Path,
) -> None:
    found = project(tmp_path, PEOPLE)
    row = {"prompt": "p", "completions": ["a", "b"]}
    write_jsonl(tmp_path / "out" / "samples.jsonl", [row])
    with Store(found.store, Settings()) as store:
        store.add_items([row])
        store.add_picks([{"prompt": "q", "completions": ["c", "d"], "best": 1}])
    with pytest.raises(InputError, match="uploaded on the admin page.*`comparisons: FILE`"):
        waiting(found, enough=True)
