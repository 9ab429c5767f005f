"""The gate: the card's own lines, in a clean process, on what is staged; and on what is downloaded.

A process that imports torch and peft takes 6 seconds, so one test starts one, and the others run
the lines in this one, with the Hub's cache and address set for it.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import InputError
from toolkit.hub import gate
from toolkit.hub.adapter_source import TrainedAdapter, read_adapter
from toolkit.hub.base_on_hub import Base, find_base
from toolkit.hub.card import render
from toolkit.hub.connection import connect, model_info
from toolkit.hub.gate import Probes, check_probes, measure, pass_gate, python_of, run_lines
from toolkit.hub.loading_snippet import Names, ids_line, probe_lines
from toolkit.hub.package import pack, read_template
from toolkit.hub.upload import publish

# huggingface_hub 2.4.0 lfs.py:334 passes a file to httpx2 as data=, which that calls deprecated.
pytestmark = [
    pytest.mark.slow,  # other processes run the card's lines
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]
KINDS = {"policy": "ppo/adapters/policy", "value": "ppo/adapters/value", "reward": "reward/adapter"}


@pytest.fixture(scope="module")
def ours(adapters: Path, demo_model: str) -> dict[str, tuple[TrainedAdapter, Probes]]:
    """Of each kind, what training's own code says of the probes."""
    sources = {kind: read_adapter(adapters / path) for kind, path in KINDS.items()}
    return {kind: (s, measure(s, Path(demo_model))) for kind, s in sources.items()}


def run_here(
    lines: str, kind: str, ends_with: str = "", prefix: list[int] | None = None, chat: bool = False
) -> Probes:
    """The card's lines and the probes, in this process."""
    scope: dict[str, Any] = {}
    line = ids_line("text", ends_with, prefix)
    exec(compile(lines + probe_lines(kind, line), "card", "exec"), scope)
    texts = [scope["chat"](text) for text in gate.PROBES] if chat else gate.PROBES
    ids = [eval(line, scope, {"text": text})[0].tolist() for text in texts]
    return Probes(ids, [scope["_numbers"](text) for text in texts])


@pytest.mark.parametrize("kind", KINDS)
def test_published_and_downloaded_again_the_cards_code_gives_trainings_numbers(
    hub: Any,
    kind: str,
    ours: Any,
    demo_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The round trip of each kind: staged, sent, and loaded from the Hub by peft alone."""
    source, expected = ours[kind]
    hub.add("org/base", Path(demo_model), {"license": "apache-2.0"})
    base = find_base(demo_model, partial(model_info, connect()), "org/base")
    assert base.problems == []
    staged = pack(source, base, render(source, base, "me/model"), None, tmp_path / "staged")
    publish(connect(), "me/model", staged.folder, staged.files)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    card = hub.repos["me/model"].files["README.md"].decode()
    theirs = run_here(python_of(card), kind)
    assert "differ by" in check_probes(expected, theirs, "fp32")
    assert ("GET", "/me/model/resolve/main/adapter_model.safetensors") in hub.seen
    assert ("GET", f"/org/base/resolve/{base.sha}/model.safetensors") in hub.seen
    if kind == "reward":  # gain and bias are in the numbers
        raw = run_here(python_of(card).replace("return 2.5 * raw + -0.75", "return raw"), kind)
        for (score,), (number,) in zip(theirs.numbers, raw.numbers, strict=True):
            assert score == pytest.approx(2.5 * number - 0.75, abs=1e-6)
    moved = torch.tensor(expected.numbers[0]) - torch.tensor(expected.without[0])
    assert moved.abs().max() > 0.05  # else it would prove nothing
    if kind == "value":  # one a token, and not all alike
        assert [len(row) for row in theirs.numbers] == [len(row) for row in theirs.ids]
        assert torch.tensor(theirs.numbers[0]).std() > 1e-3


def test_the_clean_process_passes_and_sees_no_token_and_no_home(
    ours: Any, demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, expected = ours["policy"]
    base = Base(Path(demo_model), "org/base", "a" * 40, {"license": "mit"})
    staged = pack(source, base, render(source, base, "me/model"), None, tmp_path / "staged")
    monkeypatch.setenv("HF_TOKEN", "hf_MARKERmarkerMARKERmarker0123456789")
    names = Names("me/model", base.repo_id, base.sha)
    look = (
        "import os\nassert not [v for v in os.environ.values() if 'MARKER' in v]\n"
        f"assert os.environ['HOME'] != {str(Path.home())!r}\nimport sys\n"
        "from huggingface_hub import get_token\nassert get_token() is None\n"
    )
    lines = look + python_of((staged.folder / "README.md").read_text())
    lines += "assert 'toolkit' not in sys.modules\n"
    theirs = run_lines("policy", lines, staged.folder, base.files, names)
    assert "the adapter itself moves them" in check_probes(expected, theirs, "fp32")


def spoil_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    name = next(key for key in state if "lora_B" in key)
    state[name] = state[name] * 1.01
    save_file(state, path, metadata={"format": "pt"})


def spoil_scale(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))


def spoil_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-600]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def spoil_head(folder: Path) -> None:
    state = load_file(folder / "value_head.safetensors")
    save_file(state | {"bias": state["bias"] + 0.01}, folder / "value_head.safetensors")


@pytest.mark.parametrize("kind, spoil, said", [
    ("policy", spoil_weights, "its numbers differ from training's"),
    ("policy", spoil_scale, "its numbers differ from training's"),
    ("policy", spoil_tokenizer, "the packed tokenizer makes other tokens"),
    ("value", spoil_head, "its numbers differ from training's"),
    ("reward", spoil_weights, "its numbers differ from training's"),
])  # fmt: skip
def test_staged_files_that_are_not_what_was_trained_are_refused(
    ours: Any,
    kind: str,
    spoil: Any,
    said: str,
    demo_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, expected = ours[kind]
    base = Base(Path(demo_model), "org/base", "a" * 40, {"license": "mit"})
    card = render(source, base, "me/model")
    staged = pack(source, base, card, None, tmp_path / "staged").folder
    spoil(staged)

    def here(kind: str, lines: str, staged: Path, base: Path, names: Names, *more: Any) -> Probes:
        cache = tmp_path / "cache"
        gate._pretend(cache, names.repo_id, "f" * 40, staged)
        gate._pretend(cache, names.base_id, names.sha, base)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        return run_here(lines, kind, *more)

    monkeypatch.setattr(gate, "run_lines", here)
    monkeypatch.setattr(gate, "measure", lambda source, base: expected)
    (problem,) = pass_gate(source, base, "me/model", card, staged)
    assert said in problem
    shutil.rmtree(tmp_path / "cache")
    pack(source, base, card, None, staged)
    assert pass_gate(source, base, "me/model", card, staged) == []


def test_numbers_that_are_not_finite_or_too_far_off_are_refused() -> None:
    ours = Probes([[1, 2]], [[-2.0, -4.0]])
    assert "differ by 0.02" in check_probes(ours, Probes([[1, 2]], [[-2.0, -4.02]]), "bf16")
    nan = float("nan")
    for wrong, precision in (
        ([-2.0, -4.02], "fp32"),
        ([-2.0, -4.3], "bf16"),
        ([nan, -4.0], "bf16"),
        ([-2.0, nan], "bf16"),
    ):
        with pytest.raises(InputError, match=r"^gate: "):
            check_probes(ours, Probes([[1, 2]], [wrong]), precision)


def test_an_adapter_that_was_not_loaded_does_not_pass_for_rounding(ours: Any) -> None:
    _, expected = ours["policy"]
    weak = [
        [b + 0.01 * (a - b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(expected.numbers, expected.without, strict=True)
    ]
    mine = Probes(expected.ids, weak, expected.without)
    assert "differ by 0 " in check_probes(mine, Probes(expected.ids, weak), "bf16")
    with pytest.raises(InputError, match="the adapter was not loaded"):
        check_probes(mine, Probes(expected.ids, expected.without), "bf16")
    untrained = Probes(expected.ids, expected.without, expected.without)
    with pytest.raises(InputError, match="changes no number at all"):
        check_probes(untrained, Probes(expected.ids, expected.without), "fp32")


def test_lines_that_fail_are_told_by_their_error(demo_model: str, tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    names = Names("me/model", "org/base", "a" * 40)
    with pytest.raises(InputError, match=r"fail in a clean process: ValueError: because$"):
        run_lines(
            "policy", "raise ValueError('because')\n", tmp_path / "staged", Path(demo_model), names
        )


def test_a_repository_cannot_be_its_own_base(adapters: Path, demo_model: str) -> None:
    source = read_adapter(adapters / KINDS["policy"])
    base = Base(Path(demo_model), "org/base", "a" * 40, {})
    assert pass_gate(source, base, "org/base", "", Path(demo_model)) == [
        "repo_id: org/base is the base itself (choose another name)"
    ]


MOODY = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {{ mood }}:{% endif %}"
)


@pytest.mark.parametrize("kind, template", [
    ("policy", None), ("policy", "plain"), ("reward", None), ("reward", "plain"), ("value", MOODY),
])  # fmt: skip
def test_an_adapter_of_messages_is_shown_with_one_as_it_was_trained_to_read_it(
    kind: str,
    template: str | None,
    adapters: Path,
    demo_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(demo_model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("other" if template else MOODY)
    shutil.copytree(adapters, tmp_path / "made")
    folder = tmp_path / "made" / KINDS[kind]
    facts = (folder if kind != "value" else folder.parent / "policy") / "toolkit.json"
    told = {"mood": 'so "glad"'} if template != "plain" else {}
    reads = {
        "trained_on": "messages",
        "chat_template": template,
        "chat_template_kwargs": told,
        "ends_with": "<|endoftext|>",
    }
    facts.write_text(json.dumps(json.loads(facts.read_text()) | reads))
    source, base = read_adapter(folder), Base(tmp_path / "base", "org/base", "a" * 40, {})
    card = render(source, base, "me/model")
    staged = pack(source, base, card, read_template(source, None), tmp_path / "staged").folder
    lines = python_of(card)
    assert 'chat("Where did you go?")' in lines and "add_generation_prompt=True" in lines
    assert ("**{'mood': 'so \"glad\"'}" in lines) == bool(told)
    kept = json.loads((staged / "toolkit.json").read_text())
    assert kept["chat_template_kwargs"] == told and kept["trained_on"] == "messages"

    def here(kind: str, lines: str, staged: Path, base: Path, names: Names, *more: Any) -> Probes:
        cache = tmp_path / "cache"
        gate._pretend(cache, names.repo_id, "f" * 40, staged)
        gate._pretend(cache, names.base_id, names.sha, base)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        return run_here(lines, kind, *more)

    monkeypatch.setattr(gate, "run_lines", here)
    assert pass_gate(source, base, "me/model", card, staged) == []
    # The rendering is part of what is held against training's.
    shutil.rmtree(tmp_path / "cache")
    (staged / "chat_template.jinja").write_text(MOODY.replace("assistant", "robot"))
    (problem,) = pass_gate(source, base, "me/model", card, staged)
    assert "the packed tokenizer makes other tokens" in problem


def test_text_that_some_template_rendered_is_shown_as_text_where_the_base_has_none(
    adapters: Path, demo_model: str, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "ppo", tmp_path / "ppo")
    facts = tmp_path / KINDS["policy"] / "toolkit.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"trained_on": "messages"}))
    base = Base(Path(demo_model), "org/base", "a" * 40, {})
    assert "chat(" not in render(read_adapter(facts.parent), base, "me/model")
