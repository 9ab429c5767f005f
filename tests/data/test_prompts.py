"""Prompts come from every kind of source, whole or cut, with what their rows say."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from toolkit.arguments.layouts import ColumnArguments
from toolkit.data.prompts import Prompts, joined, read_prompts
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer

PROMPT = "We went to the cafe."


USER = [{"role": "user", "content": PROMPT}]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_come_from_every_kind_of_source(demo_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(demo_model)
    texts = ["We went out.", "It rained, and then: sun."]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    rows = [{"prompt": text, "tag": i} for i, text in enumerate(texts)]
    data = Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "p.parquet"))
    data.to_csv(str(tmp_path / "p.csv"), index=False)
    data.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "a.jsonl", rows[:1])
    jsonl(tmp_path / "folder" / "b.jsonl", rows[1:])
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "p.txt").write_text("\n\n".join(texts) + "\n")
    for name in ("p.parquet", "p.csv", "saved", "folder", "p.json", "p.txt"):
        prompts, _ = read_prompts(tmp_path / name, tokenizer, 64)
        assert list(prompts) == expected and list(prompts.given.values()) == texts, name
        if name != "p.txt":
            assert [int(tag) for tag in prompts.columns["tag"]] == [0, 1]


def test_rows_of_messages_are_prompts_without_the_answer_that_closes_them(
    chat: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat)
    answered = [*USER, {"role": "assistant", "content": "Good."}]
    file = jsonl(tmp_path / "p.jsonl", [{"messages": answered}, {"messages": USER}])
    prompts, _ = read_prompts(file, tokenizer, 64)
    assert prompts[0] == prompts[1] and prompts.given == {0: USER, 1: USER}


def test_a_prompt_knows_its_line_whatever_was_left_out_before_it(
    demo_model: str, tmp_path: Path
) -> None:
    texts = [PROMPT, f"{PROMPT} " * 30, PROMPT, "We went home.", "It rained."]
    file = jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in texts])
    prompts, left_out = read_prompts(file, load_tokenizer(demo_model), 64, skip=1)
    assert left_out == 1
    assert [prompts.place(i) for i in range(3)] == [f"{file}:{line}" for line in (3, 4, 5)]
    both = joined([prompts, prompts])
    assert both.once().pick([2, 0]).places == {0: f"{file}:5", 1: f"{file}:3"}


def test_joined_prompts_keep_what_each_was_given_as(demo_model: str) -> None:
    one, other = Prompts([[5]], {"tag": [1]}), Prompts([[6], [7]], {"other": [2, 3]})
    other.given, other.places = {1: USER}, {0: "b.jsonl:3", 1: "b.jsonl:4"}
    whole = joined([one, other])
    assert whole == [[5], [6], [7]] and whole.given == {2: USER}
    assert [whole.place(i) for i in range(2)] == ["the prompt at place 1", "b.jsonl:3"]
    assert whole.columns == {"tag": [1, None, None], "other": [None, 2, 3]}


def test_messages_that_a_table_holds_as_text_are_messages_and_others_text_is_refused(
    chat: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat)
    rows = [{"prompt": json.dumps(USER)}, {"messages": json.dumps(USER)}, {"prompt": USER}]
    prompts, _ = read_prompts(jsonl(tmp_path / "p.jsonl", rows), tokenizer, 64)
    assert prompts[0] == prompts[1] == prompts[2] and prompts.given[0] == USER
    file = jsonl(tmp_path / "q.jsonl", [{"prompt": str(USER)}])
    with pytest.raises(InputError, match=r"q\.jsonl:1: prompt: messages that a program wrote"):
        read_prompts(file, tokenizer, 64)


def test_a_system_text_and_a_dialogue_beside_its_first_turn_make_messages(
    chat: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat)
    dialogue = [*USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "No."}]
    rows = [{"prompt": PROMPT, "system": "Be brief."}, {"prompt": PROMPT, "messages": dialogue}]
    prompts, _ = read_prompts(jsonl(tmp_path / "p.jsonl", rows), tokenizer, 64)
    assert prompts.given[0] == [{"role": "system", "content": "Be brief."}, *USER]
    assert prompts.given[1] == USER
    file = jsonl(tmp_path / "q.jsonl", [{"prompt": "Other.", "messages": dialogue}])
    with pytest.raises(InputError, match=r"q\.jsonl:1: prompt and messages begin differently"):
        read_prompts(file, tokenizer, 64)


def test_text_before_a_chat_model_is_said_to_be_continued_not_answered(
    chat: str, demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "p.jsonl", [{"prompt": PROMPT}])
    read_prompts(file, load_tokenizer(chat), 64)
    assert "the model continues them and does not answer" in capsys.readouterr().out
    read_prompts(file, load_tokenizer(demo_model), 64)
    read_prompts(jsonl(tmp_path / "m.jsonl", [{"prompt": USER}]), load_tokenizer(chat), 64)
    assert "does not answer" not in capsys.readouterr().out


def test_prompts_are_cut_or_left_out_by_length(tmp_path: Path, demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    path = tmp_path / "p.jsonl"
    texts = ["We went.", "We went to the market near the station with my old friend."]
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    prompts, left_out = read_prompts(path, tokenizer, max_prompt_length=5)
    assert (len(prompts), left_out) == (1, 1)
    prompts, left_out = read_prompts(path, tokenizer, 256, prompt_tokens=6)
    assert ([len(p) for p in prompts], left_out) == ([6], 1)
    with pytest.raises(InputError, match="none of the 2 prompts"):
        read_prompts(path, tokenizer, max_prompt_length=1)


def test_rows_of_text_need_to_be_told_where_to_cut(tmp_path: Path, demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"text": "We went to the market near the station."}) + "\n")
    with pytest.raises(InputError, match=r"p\.jsonl:1: .*pass --prompt_tokens N"):
        read_prompts(path, tokenizer, 256)
    prompts, _ = read_prompts(path, tokenizer, 256, prompt_tokens=4)
    assert [len(p) for p in prompts] == [4]


def test_a_table_of_any_headers_gives_prompts_as_text_or_as_messages(
    chat: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat)
    (tmp_path / "p.csv").write_text(f"Frage;A;B;Wahl\n{PROMPT};x;y;A\n")
    words = ["prompt=Frage", "completions=A,B", "best=Wahl"]  # as comparisons are read
    plain, _ = read_prompts(
        tmp_path / "p.csv", tokenizer, 64, columns=ColumnArguments(columns=words)
    )
    assert plain.given == {0: PROMPT}
    args = ColumnArguments(columns=words, as_messages=True)
    asked, _ = read_prompts(tmp_path / "p.csv", tokenizer, 64, columns=args)
    assert asked.given == {0: USER}
    args = ColumnArguments(columns=["prompt=Fragen"])
    with pytest.raises(InputError, match=r"p.csv:2: columns: prompt=Fragen, .*mean 'Frage'"):
        read_prompts(tmp_path / "p.csv", tokenizer, 64, columns=args)


def test_prompts_of_layouts_without_a_prompt_of_their_own_are_found(
    chat: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat)
    turns = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": "Good."}]
    rows = [{"conversations": turns}, {"instruction": "Say it.", "input": PROMPT, "output": "a"}]
    prompts, _ = read_prompts(jsonl(tmp_path / "p.jsonl", rows), tokenizer, 64)
    assert prompts.given == {0: USER, 1: f"Say it.\n\n{PROMPT}"}


def test_text_that_excel_saved_in_utf_16_has_a_prompt_a_line_or_is_a_table(
    demo_model: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(demo_model)
    for content, texts in (
        ("One.\r\nTwo.\r\n", ["One.", "Two."]),
        ("prompt\ttag\r\nOne.\t1\r\n", ["One."]),
    ):
        (tmp_path / "p.txt").write_bytes(content.encode("utf-16"))
        prompts, _ = read_prompts(tmp_path / "p.txt", tokenizer, 64)
        assert list(prompts.given.values()) == texts
