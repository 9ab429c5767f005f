"""How messages become text: what the run and the rows tell the template, and what is noticed."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import call, recipe
from toolkit.data.chat import Chat, read_chat
from toolkit.data.encoding import Encoder
from toolkit.data.prompts import given_prompts, read_prompts
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer
from toolkit.models.reading import Reading, other_rendering, reading_of

USER = [{"role": "user", "content": "Hi."}]
THINKING = (  # as Qwen3's: thinks unless it is told not to
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<no thoughts>{% endif %}{% endif %}"
)
OFF = '{"enable_thinking": false}'


@pytest.fixture
def tokenizer(demo_model: str) -> Any:
    found: Any = load_tokenizer(demo_model)
    found.chat_template = THINKING
    return found


def asked(tokenizer: Any, chat: Chat, **row: Any) -> str:
    return Encoder(tokenizer, None, chat=chat).prompt_text(USER, row)


# What the template is told.


def test_the_run_tells_the_template_and_a_row_goes_over_it_key_by_key(tokenizer: Any) -> None:
    off = read_chat(None, OFF)
    assert asked(tokenizer, Chat()) == "<user>Hi.\n<assistant>"
    assert asked(tokenizer, off) == "<user>Hi.\n<assistant><no thoughts>"
    assert (
        asked(tokenizer, off, chat_template_kwargs={"enable_thinking": True}) == "<user>Hi.\n"
        "<assistant>"
    )
    for more in ({"other": 1}, '{"other": 1}'):
        assert "<no thoughts>" in asked(tokenizer, off, chat_template_kwargs=more)
    # A table's null, where another row has a value, says nothing.
    assert off.told({"chat_template_kwargs": {"enable_thinking": None}}) == off.kwargs
    assert off.told({"chat_template_kwargs": {"other": 1}}) == {
        "enable_thinking": False,
        "other": 1,
    }


def test_a_mistake_in_yaml_has_its_line_and_one_in_a_row_its_place(
    tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\nchat_template_kwargs: 3\n")
    with pytest.raises(InputError, match=r"c\.yaml:2: chat_template_kwargs: 3, but must be"):
        call(recipe("sample").main, ["--config", str(tmp_path / "c.yaml")])
    row = {"prompt": USER, "chat_template_kwargs": {"tokenize": True}}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        InputError, match=r"p\.jsonl:1: chat_template_kwargs: 'tokenize' is set by the toolkit"
    ):
        read_prompts(tmp_path / "p.jsonl", tokenizer, 64)


# What is noticed.


def notes(tokenizer: Any, chat: Chat, messages: Any = USER) -> list[str]:
    return chat.notes(tokenizer, messages)


def test_what_the_template_never_reads_is_said_once_for_all_files(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": USER}) + "\n")
    typo = read_chat(None, '{"enable_thinkin": false}')
    for _ in range(2):
        read_prompts(tmp_path / "p.jsonl", tokenizer, 64, chat=typo)
    said = capsys.readouterr().out
    assert (
        said.count("the template never reads enable_thinkin (did you mean enable_thinking?)") == 1
    )
    assert notes(tokenizer, read_chat(None, OFF)) == []
    assert "never reads x (leave it out" in notes(tokenizer, read_chat("plain", '{"x": 1}'))[0]
    tokenizer.chat_template = "{% generation %}{{ x }}{% endgeneration %}{% break %}" + THINKING
    assert notes(tokenizer, read_chat(None, '{"x": 1}')) == []
    assert "never reads y" in notes(tokenizer, read_chat(None, '{"y": 1}'))[0]


def test_a_template_that_does_not_begin_the_assistants_turn_is_noticed(tokenizer: Any) -> None:
    without = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    (line,) = notes(tokenizer, Chat(without))
    assert "before the assistant's text the template writes '<assistant>', but not when" in line
    # The cure that it names works.
    cure = re.search(r"{% if add.*{% endif %}", line)
    assert cure is not None and notes(tokenizer, Chat(without + cure[0])) == []
    assert asked(tokenizer, Chat(without + cure[0])) == "<user>Hi.</s>\n<assistant>"


@pytest.mark.parametrize(
    "template",
    [
        THINKING,
        # Llama 2's: the answer stands behind the user's turn, with nothing between.
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} "
        "{{ m.content }}</s>{% endif %}{% endfor %}",
        # The assistant's turn is begun whether it is asked for or not.
        "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}<a>{% else %}"
        "{{ m.content }}</s>{% endif %}{% endfor %}",
        # An assistant's message is refused, so nothing is known.
        "{% for m in messages %}{{ {'user': m.content}[m.role] + raise_exception('x') "
        "if m.role != 'user' else m.content }}{% endfor %}",
    ],
    ids=["asks", "no header", "always begun", "refuses"],
)
def test_other_templates_are_not_complained_of(tokenizer: Any, template: str) -> None:
    assert notes(tokenizer, Chat(template)) == []


# What an adapter was trained with.


def test_rows_that_go_on_carry_what_their_template_was_told(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": USER, "tag": 1},
        {"prompt": "Text."},
        {"prompt": USER, "chat_template_kwargs": {"enable_thinking": True}},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, _ = read_prompts(path, tokenizer, 64, chat=read_chat(None, OFF))
    assert [prompts.handed_on(i) for i in range(3)] == [
        {"tag": 1, "chat_template_kwargs": {"enable_thinking": False}},
        {},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ]
    written = [{"prompt": row["prompt"]} | prompts.handed_on(i) for i, row in enumerate(rows)]
    assert given_prompts(written, tokenizer) == prompts  # by a stage that is told nothing
    assert prompts.rendering() == {
        "trained_on": "both",
        "chat_template": None,
        "chat_template_kwargs": None,
    }
    assert prompts.pick([0]).rendering() == {
        "trained_on": "messages",
        "chat_template": None,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_a_template_that_writes_todays_date_is_noticed(tokenizer: Any) -> None:
    dated = "{% if date is not defined %}{% set date = strftime_now('%d %B %Y') %}{% endif %}"
    dated = f"{dated}Today: {{{{ date }}}}\n{THINKING}"

    (line,) = notes(tokenizer, Chat(dated))
    assert "writes today's date" in line
    # The date is today's in what is rendered, and none is written where one is told.
    assert Chat(dated).render(tokenizer, USER).startswith(f"Today: {date.today():%d %B %Y}\n")
    assert notes(tokenizer, Chat(dated, {"date": "26 Jul 2024"})) == []
    assert notes(tokenizer, Chat(THINKING)) == []


def test_a_reward_adapter_refuses_and_a_policy_notes_another_rendering(
    tokenizer: Any, tmp_path: Path
) -> None:
    encoder = Encoder(tokenizer, None, chat=read_chat(None, OFF))
    row = {"prompt": USER, "completions": ["a", "b"], "best": 0}
    list(encoder.encode([("c.jsonl:1", row)]))
    (tmp_path / "toolkit.json").write_text(json.dumps(encoder.rendering()))
    reading = reading_of(tmp_path, tokenizer)
    same = given_prompts([{"prompt": USER}], tokenizer, read_chat(None, OFF))
    by_row = [{"prompt": USER, "chat_template_kwargs": {"enable_thinking": False}}]
    on = given_prompts([{"prompt": USER}], tokenizer)
    plain = given_prompts([{"prompt": USER}], tokenizer, read_chat("plain", OFF))
    text = given_prompts([{"prompt": "Hi."}], tokenizer)
    for prompts in (same, given_prompts(by_row, tokenizer)):
        reading.check(prompts)
        assert other_rendering(tmp_path, prompts, "p") == []
    with pytest.raises(
        InputError, match=r'with \{"enable_thinking": false\}, .* prompts with \{\}'
    ):
        reading.check(on)
    assert other_rendering(tmp_path, on, "p") == [
        'p was trained with chat_template_kwargs {"enable_thinking": false}, but the prompts have '
        "{}"
    ]
    assert (
        "by the tokenizer's own, but the prompts use plain"
        in other_rendering(tmp_path, plain, "p")[0]
    )
    assert other_rendering(tmp_path, text, "p") == other_rendering(None, on, "p") == []
    Reading().check(same)  # of before this was noted: nothing is known


def test_a_reward_model_of_another_base_renders_as_in_its_training(
    tokenizer: Any, tmp_path: Path
) -> None:
    facts = {
        "trained_on": "messages",
        "chat_template": None,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    (tmp_path / "toolkit.json").write_text(json.dumps(facts))
    (row,) = reading_of(tmp_path, tokenizer).text_rows(tokenizer, [USER], ["a"])
    assert tokenizer.decode(row) == "<user>Hi.\n<assistant><no thoughts>a"
