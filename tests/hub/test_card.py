"""The card tells what is known, says what is not, and is inert whatever it tells."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from toolkit.errors import InputError
from toolkit.hub.adapter_source import TrainedAdapter, read_adapter, read_results
from toolkit.hub.base_on_hub import Base
from toolkit.hub.card import code, render
from toolkit.record import RunRecord
from toolkit.scoring.accuracy import OwnAccuracy, RewardMetrics

HOSTILE = "x` <script>alert(1)</script>\n## A heading\n![i](http://e.x/i.png) | \x1b[31m\u202e```"
DEMO = Path(__file__).parents[2] / "data" / "model"
BASE = Base(DEMO, "org/base", "a" * 40, {"license": "apache-2.0"})


def test_results_are_this_adapters_seen_from_its_side(
    evaluation: Any, policy: TrainedAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation(policy.folder)))
    for source in (path, tmp_path):
        results = read_results(source, policy.folder)
        card = render(policy, BASE, "me/policy", results)
        row = "| `reference` | `vader` (the training reward) | 400 / 12 / 100 | "
        assert row + "80.0% [76.0%, 83.0%] |" in card
        assert "on 512 prompts. KL from the reference per completion: 4.9 nats (standard" in card
        assert "| 8.1 (0.1) | +1.80 |" in card
    with pytest.raises(InputError, match="0 contenders .* of ppo, reference"):
        read_results(path, policy.folder.parent)
    assert read_results(path, policy.folder.parent, "ppo") == results


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, None), (2, "It was trained on 2 of these prompts"), (None, "could not be checked")],
)
def test_prompts_that_were_not_held_out_are_told(
    count: int | None, said: str | None, evaluation: Any, policy: TrainedAdapter, tmp_path: Path
) -> None:
    whole = evaluation(policy.folder)
    for contender in whole["contenders"]:
        contender["trained_prompts"] = count
    (tmp_path / "evaluation.json").write_text(json.dumps(whole))
    card = render(policy, BASE, "me/policy", read_results(tmp_path, policy.folder))
    assert (said or "It was evaluated on 512 prompts") in card
    assert ("held out.**" in card) == bool(count)
    assert ("could not be checked" in card) == (count is None)


def test_what_was_not_measured_is_said(policy: TrainedAdapter) -> None:
    card = render(policy, BASE, "me/policy")
    assert "Win rates: not measured." in card and "## Data\n\nnot recorded." in card
    assert "whether people or another judge prefer it" in card


def test_the_metadata_are_the_hubs_fields(policy: TrainedAdapter) -> None:
    data = ModelCard(render(policy, BASE, "me/policy")).data.to_dict()
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "rlhf", "ppo"],
    }


def test_a_rewards_card_has_accuracy_data_and_settings_but_no_path(adapters: Path) -> None:
    source = read_adapter(adapters / "reward" / "adapter")
    source.metrics = RewardMetrics(
        accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, p=1e-12, chance=0.25, comparisons=200
    )
    source.record = RunRecord(
        data={"source": "/home/ann/secret/picks.jsonl", "rows": 1000},
        settings={"loss_type": "best_of_k", "chat_template": "/home/ann/t.jinja", "seed": 1},
    )
    card = render(source, BASE, "me/reward", labels="Three people in Bonn.")
    assert "share of 0.500 [0.400, 0.600] of 200 held-out comparisons" in card
    assert "not shown to be better than chance" not in card
    assert "| `source` | `picks.jsonl` |" in card and "| `loss_type` | `best_of_k` |" in card
    assert "Three people in Bonn." in card and "/home/ann" not in card
    assert "return 2.5 * raw + -0.75" in card  # gain and bias
    source.metrics = replace(source.metrics, p=0.4)
    assert "not shown to be better than chance" in render(source, BASE, "me/reward")

    # In a cross-validation most of the comparisons were held out from other models.
    own = OwnAccuracy(accuracy=0.45, low=0.3, high=0.6, comparisons=40, p_below=0.5)
    source.metrics = replace(source.metrics, folds=5, own=own)
    card = render(source, BASE, "me/reward")
    assert "In a cross-validation of 5 folds" in card and "held-out comparisons" not in card
    assert "40 of them by this one, which is right in 0.450 [0.300, 0.600]" in card


def test_several_reward_models_are_named_without_their_paths(policy: TrainedAdapter) -> None:
    several = "/home/ann/secret/one,outputs/x/two"
    settings = {"reward_adapter": several, "reward_combine": "min", "seed": 1}
    policy.record = RunRecord(method="ppo", settings=settings)
    card = render(policy, BASE, "me/policy")
    assert "| `reward_adapter` | `one,two` |" in card and "| `reward_combine` | `min` |" in card
    assert "/home/ann" not in card and "outputs/x" not in card

    policy.record.settings["reward_adapter"] = "/home/ann/secret/one"
    assert "reward_combine" not in render(policy, BASE, "me/policy")


def test_hostile_text_stays_text(evaluation: Any, policy: TrainedAdapter, tmp_path: Path) -> None:
    whole = evaluation(policy.folder)
    whole["judges"][0]["name"] = whole["pairs"][0]["judge"] = HOSTILE
    whole["pairs"][0]["a"] = HOSTILE
    whole["contenders"][0]["scores"] = {HOSTILE: whole["contenders"][0]["scores"]["vader"]}
    (tmp_path / "evaluation.json").write_text(json.dumps(whole))
    policy.record = RunRecord(
        method="ppo",
        data={HOSTILE: HOSTILE},
        settings={"lexicon": HOSTILE, "seed": HOSTILE},
        versions={"torch": HOSTILE},
    )
    card = render(policy, BASE, "me/policy", read_results(tmp_path, policy.folder))
    plain = render(policy.__class__(**vars(policy) | {"record": None}), BASE, "me/policy")
    assert re.findall(r"^#+ .*$", card, flags=re.M) == re.findall(r"^#+ .*$", plain, flags=re.M)
    assert len(re.findall(r"^```", card, flags=re.M)) == 4  # python, bibtex
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", card, flags=re.M | re.S))
    assert "<" not in outside and "![" not in outside and "http://" not in outside
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", card)
    assert "on 512 prompts" in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (3, 4, 5)


def test_the_publishers_own_words_are_a_paragraph_without_html(policy: TrainedAdapter) -> None:
    card = render(
        policy, BASE, "me/policy", data="## <b>All</b>\n\n`mine`\x1b, see [x](https://x.y)"
    )
    assert "\n## Data\n\n&lt;b>All&lt;/b> 'mine' , see [x](https://x.y)\n\n" in card


def test_code_is_one_inert_line() -> None:
    assert code("a | <b>`x`</b>\n\\") == "`a / <b>'x'</b> /`"
    assert code("") == "` `" and code("x" * 500) == f"`{'x' * 120} ...`"


def test_the_same_arguments_give_the_same_card(policy: TrainedAdapter) -> None:
    assert render(policy, BASE, "me/policy") == render(policy, BASE, "me/policy")


@pytest.mark.parametrize("settings, method, labels", [
    ({"method": "dpo", "beta": 0.1}, "TRL's DPO (arXiv 2305.18290)", "one of them is picked"),
    ({"num_generations": 4, "lexicon": "l.txt"}, "RLOO (arXiv", "| `lexicon` | `l.txt` |"),
    ({"seed": 1}, "Supervised fine-tuning on", "one of them is picked"),
    ({"kl_controller": "adaptive", "policy_adapter": "/x/sft"}, "It started from another adapter",
     "not recorded."),
    ({"kl_controller": "adaptive", "ptx_coef": 0.05}, "plain text beside its rewards (PTX, "
     "ptx_coef 0.05)", "not recorded."),
])  # fmt: skip
def test_policies_of_other_methods_say_which(
    adapters: Path, tmp_path: Path, settings: dict[str, Any], method: str, labels: str
) -> None:
    folder = tmp_path / "run" / "adapter"
    shutil.copytree(adapters / "ppo/adapters/policy", folder)
    card = render(read_adapter(folder), BASE, "me/policy")
    assert "The training method is not recorded." in card
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": settings}))
    card = render(read_adapter(folder), BASE, "me/policy")
    assert method in card and labels in card and "/x/sft" not in card
    told = render(read_adapter(folder), BASE, "me/policy", data="Mine.", labels="Ann's.")
    assert "not recorded" not in told


def test_kl_is_that_of_these_adapters(adapters: Path, tmp_path: Path) -> None:
    for name in ("adapters", "best"):
        shutil.copytree(adapters / "ppo/adapters/policy", tmp_path / name / "policy")
    rows = [{"update": i + 1, "episode": 8 * (i + 1), "objective/kl": float(i)} for i in range(10)]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "best" / "evaluation.json").write_text(json.dumps({"eval/kl": 2.25}))
    said = {
        n: render(read_adapter(tmp_path / n / "policy"), BASE, "a/b") for n in ("adapters", "best")
    }
    assert "8.5 nats, as sampled over the last fifth" in said["adapters"]  # of 8 and 9
    assert "2.25 nats, on the run's held-out prompts" in said["best"]
