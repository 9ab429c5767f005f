"""Prompts and completions become the same tokens wherever they are read: one place, one rule."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from toolkit.data.chat import read_chat
from toolkit.data.encoding import Encoder
from toolkit.data.prompts import given_prompts, read_prompts
from toolkit.data.tokens import closing_id, end_ids, stop_ids, text_ids
from toolkit.errors import InputError
from toolkit.models.generation import Sampled
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.reading import Reading, reading_of
from toolkit.models.roles import Roles
from toolkit.models.sampling import sampling_rule
from toolkit.training.baselines.data import prepare_text

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = "We went to the cafe."
USER = [{"role": "user", "content": PROMPT}]


def encoded(tokenizer: Any, row: dict, **kwargs: Any) -> tuple[list[int], list[list[int]]]:
    (found,) = Encoder(tokenizer, None).pieces([("c.jsonl:1", row)], **kwargs)
    return found.prompt, found.completions


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Special tokens around a prompt.


def test_a_tokenizer_that_appends_eos_ends_no_prompt_completion_or_text_with_it(
    variant: Callable[..., str], demo_model: str, tmp_path: Path
) -> None:
    plain, ending = load_tokenizer(demo_model), load_tokenizer(variant(single="$A <|endoftext|>"))
    eos = plain.eos_token_id
    assert ending(PROMPT)["input_ids"] == [*plain(PROMPT)["input_ids"], eos]
    file = jsonl(tmp_path / "p.jsonl", [{"prompt": PROMPT}])
    assert read_prompts(file, ending, 64)[0] == read_prompts(file, plain, 64)[0]
    row = {"prompt": PROMPT, "completions": [" It was good.", " No."], "best": 0}
    assert encoded(ending, row) == encoded(plain, row)
    assert encoded(ending, row, end_id=eos)[1] == [[*c, eos] for c in encoded(plain, row)[1]]
    texts = jsonl(tmp_path / "t.jsonl", [{"text": f"{PROMPT} {i}"} for i in range(4)])
    for stop, end in ((None, []), (eos, [eos])):
        data = prepare_text(str(texts), ending, 64, stop, 1, 0, tmp_path)
        for ids in data.train["input_ids"]:
            assert ids == plain(ending.decode(ids, skip_special_tokens=True))["input_ids"] + end


def test_text_that_a_template_rendered_has_its_bos_once_as_the_messages_have(
    chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(chat)
    rendered = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    rows = [{"prompt": rendered}, {"prompt": USER}, {"prompt": PROMPT}]
    prompts, _ = read_prompts(jsonl(tmp_path / "p.jsonl", rows), tokenizer, 64)
    assert prompts[0] == prompts[1] and prompts[0].count(tokenizer.bos_token_id) == 1
    assert prompts[2] == tokenizer(PROMPT)["input_ids"]  # plain text gets the tokenizer's
    assert "1 prompts begin with <s> as text" in capsys.readouterr().out


def test_a_prompt_that_ends_in_a_space_has_ppos_tokens_in_reward_training(
    demo_model: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(demo_model)
    row = {"prompt": f"{PROMPT} ", "completions": ["It was good.", "No."], "best": 0}
    (asked,), _ = read_prompts(jsonl(tmp_path / "p.jsonl", [row]), tokenizer, 64)
    encoder = Encoder(tokenizer, None)
    (made,) = encoder.encode([("c.jsonl:1", row)])
    for ids, text in zip(made["candidate_ids"], row["completions"], strict=True):
        assert ids[: len(asked)] == asked and tokenizer.decode(ids) == row["prompt"] + text
    joint = tokenizer(row["prompt"] + row["completions"][0])["input_ids"]
    assert joint[: len(asked)] != asked  # as one text, the space melts into the next word
    assert "1 prompts end in a space" in "\n".join(encoder.notes())


# Where a completion ends.


@pytest.mark.parametrize("behind", ["", " We left.", "<|endoftext|>"])
def test_a_completion_ends_before_its_first_end_token_and_is_counted(
    behind: str, demo_model: str
) -> None:
    tokenizer = load_tokenizer(demo_model)
    eos = tokenizer.eos_token_id
    bare = {"prompt": PROMPT, "completions": [" It was good.", " No."], "best": 0}
    row = bare | {"completions": [f" It was good.<|endoftext|>{behind}", " No."]}
    assert encoded(tokenizer, row) == encoded(tokenizer, bare)
    assert encoded(tokenizer, row, end_id=eos) == encoded(tokenizer, bare, end_id=eos)
    encoder = Encoder(tokenizer, None)
    list(encoder.pieces([("c.jsonl:1", row)]))
    assert (encoder.ended, encoder.behind) == (1, int(behind == " We left."))
    assert "1 completions carry an end token (<|endoftext|>)" in encoder.notes()[0]


def test_a_completion_that_is_only_an_end_token_is_refused_by_its_place_or_skipped(
    demo_model: str,
) -> None:
    tokenizer = load_tokenizer(demo_model)
    good = {"prompt": PROMPT, "completions": [" Yes.", " No."], "best": 0}
    rows = [("c.jsonl:1", good | {"completions": ["<|endoftext|>", " No."]}), ("c.jsonl:2", good)]
    with pytest.raises(InputError, match=r"c\.jsonl:1: completions: .* is only an end token"):
        list(Encoder(tokenizer, None).pieces(rows))
    encoder = Encoder(tokenizer, None, skip_invalid=True)
    assert [found.number for found in encoder.pieces(rows)] == [1]
    assert encoder.bad.count == 1 and encoder.bad.shown[0].startswith("c.jsonl:1")


def test_all_end_tokens_of_model_and_template_end_a_completion(
    chat: str, variant: Callable[..., str], demo_model: str
) -> None:
    dot = load_tokenizer(demo_model).convert_tokens_to_ids(".")
    listed = variant("listed")
    config = Path(listed) / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [1, dot]}))
    tokenizer = load_tokenizer(listed)
    assert end_ids(tokenizer) == stop_ids(tokenizer, "eos") == (1, dot)
    assert stop_ids(tokenizer, None) == ()  # no chat template: the paper's fixed length
    assert stop_ids(tokenizer, ".") == (dot,)
    roles = Roles(load_base(listed, "fp32"))
    rule = sampling_rule(tokenizer, 24, 0.7, "eos")
    prompts = [tokenizer(PROMPT)["input_ids"]] * 16
    _, sampled = rule.sample(roles.step(), prompts, torch.Generator().manual_seed(0), roles.device)
    visible, _ = rule.visible(sampled)
    for ids, mask, seen in zip(sampled.completion_ids, sampled.mask, visible, strict=True):
        kept = ids[mask].tolist()
        assert not {1, dot} & set(kept[:-1]) and ids[seen].tolist() == [
            i for i in kept if i not in (1, dot)
        ]
    assert any(dot in row.tolist() for row in sampled.completion_ids)

    # Of a chat model both, its end of turn too, without being asked; unless told otherwise.
    tokenizer = load_tokenizer(chat)
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_ids(tokenizer, None) == stop_ids(tokenizer, "eos") == (1, turn)
    assert stop_ids(tokenizer, "none") == ()
    assert closing_id(tokenizer, stop_ids(tokenizer, None)) == turn
    assert closing_id(load_tokenizer(demo_model), (1,)) == 1 and closing_id(tokenizer, ()) is None


# Messages.


def test_a_prompt_of_messages_is_what_transformers_makes_of_it_with_tools_and_arguments(
    variant: Callable[..., str], tmp_path: Path
) -> None:
    folder = variant(
        "tools",
        ("<|im_start|>", "<|im_end|>"),
        template="{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{{ mood }}" + CHATML,
    )
    tokenizer, own = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    tool = {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    rows = [
        {"prompt": USER, "tools": [tool], "chat_template_kwargs": {"mood": "glad"}},
        {"prompt": USER, "tools": json.dumps([tool])},
        {"prompt": USER},
    ]
    prompts, _ = read_prompts(jsonl(tmp_path / "p.jsonl", rows), tokenizer, 256)
    for ids, tools, words in zip(
        prompts, ([tool], [tool], None), ({"mood": "glad"}, {}, {}), strict=True
    ):
        assert ids == own.apply_chat_template(
            USER, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False, **words
        )
    (comparison, *_) = Encoder(tokenizer, None).pieces(
        [("c:1", rows[0] | {"completions": ["Yes.", "No."], "best": 0})]
    )
    assert comparison.prompt == prompts[0]
    # Written down and read again, they are the same prompts.
    assert given_prompts(prompts.asked(tokenizer), tokenizer) == prompts


def test_a_template_that_refuses_a_row_says_which_and_can_be_skipped(
    variant: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHATML
    )
    tokenizer = load_tokenizer(variant("strict", ("<|im_start|>", "<|im_end|>"), template=strict))
    system = [{"role": "system", "content": "Be brief."}, *USER]
    file = jsonl(tmp_path / "p.jsonl", [{"prompt": USER}, {"prompt": system}, {"prompt": USER}])
    with pytest.raises(InputError, match=r"p\.jsonl:2: chat_template refuses .*no system role"):
        read_prompts(file, tokenizer, 64)
    assert len(read_prompts(file, tokenizer, 64, skip_invalid=True)[0]) == 2
    assert "1 bad rows skipped" in capsys.readouterr().out
    rows = [("c.jsonl:7", {"prompt": system, "completions": ["a", "b"], "best": 0})]
    with pytest.raises(InputError, match=r"c\.jsonl:7: chat_template refuses .*--skip_invalid"):
        list(Encoder(tokenizer, None).pieces(rows))
    assert not list(Encoder(tokenizer, None, skip_invalid=True).pieces(rows))


# Vocabularies.


def test_a_pad_token_beyond_the_embedding_gives_way_to_one_within(
    variant: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = variant("padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(folder)
    assert tokenizer.pad_token_id == 1024 and loaded.pad_token_id < 1024
    assert "[PAD] is token 1024, but the embedding has 1024 rows" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"'\[PAD\]' is token 1024, but the model's embedding has"):
        given = Path(folder) / "p.jsonl"
        read_prompts(jsonl(given, [{"prompt": f"{PROMPT}[PAD]"}]), loaded, 64)


def test_an_unknown_token_that_pads_may_end_a_completion(variant: Callable[..., str]) -> None:
    folder = variant("unk", ("<unk>",), unk_token="<unk>", pad_token="<unk>")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id
    row = {"prompt": PROMPT, "completions": [" a<unk>", " b"], "best": 0}
    encoder = Encoder(tokenizer, None)
    (made,) = encoder.encode([("c.jsonl:1", row)])
    assert made["candidate_ids"][0][-1] == tokenizer.unk_token_id
    assert encoder.pad_id() not in {ids[-1] for ids in made["candidate_ids"]}


def test_rows_of_the_embedding_without_a_token_are_never_sampled_nor_counted_on(
    demo_model: str, tmp_path: Path
) -> None:
    """The head is made to love them; log-probs are those of the logits cut to the tokens."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(demo_model)
    model.resize_token_embeddings(1040, mean_resizing=False)
    for file in Path(demo_model).glob("*token*"):
        (tmp_path / "wide").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "wide")
    with torch.no_grad():
        model.get_input_embeddings().weight[1024:] = 3 * model.get_input_embeddings().weight[:16]
    model.save_pretrained(tmp_path / "wide")
    tokenizer = load_tokenizer(str(tmp_path / "wide"))
    roles = Roles(load_base(str(tmp_path / "wide"), "fp32"))
    prompts = [tokenizer(PROMPT)["input_ids"]] * 32
    rule = sampling_rule(tokenizer, 16, 1.0)

    def sampled() -> Any:
        return rule.sample(roles.step(), prompts, torch.Generator().manual_seed(0), roles.device)[1]

    assert (sampled().completion_ids >= 1024).any()
    roles.keep_only(tokenizer)
    found = sampled()
    assert (found.completion_ids < 1024).all()
    ids = torch.cat([torch.tensor(prompts), found.completion_ids], dim=1)
    with torch.no_grad():
        logits = model(ids).logits[:, len(prompts[0]) - 1 : -1, :1024].log_softmax(-1)
        expected = logits.gather(-1, found.completion_ids[..., None]).squeeze(-1)
        mask = torch.ones_like(ids, dtype=torch.bool)
        ours = roles.policy_outputs(ids, mask, found.completion_ids, 1.0).logprobs
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


# Cuts.


def test_no_cut_goes_through_a_character(demo_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(demo_model)  # byte-level: an umlaut is two tokens, a smile four
    text = "ü☺é" * 6
    file = jsonl(tmp_path / "t.jsonl", [{"text": text}])
    whole = tokenizer(text)["input_ids"]
    for count in range(3, len(whole)):
        (ids,), _ = read_prompts(file, tokenizer, 256, prompt_tokens=count)
        assert text.startswith(tokenizer.decode(ids)) and "\ufffd" not in tokenizer.decode(ids)
        assert 0 <= count - len(ids) <= 3
    row = {"prompt": text, "completions": [" a", " b"], "best": 0}
    for length in range(6, len(whole)):
        encoder = Encoder(tokenizer, length, "truncate_prompt")
        for found in encoder.pieces([("c.jsonl:1", row)]):
            assert text.endswith(tokenizer.decode(found.prompt))


# What a reward model finds behind a completion.


def trl_rows(folder: str, chat: bool, tmp_path: Path) -> list[list[int]]:
    """The ids that TRL's own RewardTrainer makes of two pairs."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    said = (lambda text: [{"role": "assistant", "content": text}]) if chat else (lambda text: text)
    pairs = [
        {"prompt": USER if chat else PROMPT, "chosen": said(" Good."), "rejected": said(" No!")}
    ]
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(folder, num_labels=1)
        ),
        RewardConfig(
            str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            report_to=[],
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    assert trainer.train_dataset is not None
    row = trainer.train_dataset[0]
    return [row["chosen_ids"], row["rejected_ids"]]


@pytest.mark.parametrize("messages", [False, True], ids=["text", "messages"])
def test_a_stock_models_texts_are_trls_to_the_token_by_ids_and_by_text(
    messages: bool, chat: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat)
    expected = trl_rows(chat, messages, tmp_path)
    reading = reading_of(tmp_path, tokenizer)  # nothing of this project lies there
    given: Any = USER if messages else PROMPT
    completions = [" Good.", " No!"]
    assert reading.text_rows(tokenizer, [given] * 2, completions) == expected
    prompts = given_prompts([{"prompt": given}] * 2, tokenizer)
    kept = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions]
    assert reading.rows(tokenizer, prompts, kept) == expected


def test_an_end_token_that_pads_is_read_as_trl_reads_it_not_at_all(demo_model: str) -> None:
    """TRL's pooling passes it over (config.pad_token_id is it), so the text's last token counts."""
    reading = Reading(ends_with=1, whole=True, padding=1)
    assert reading.rows(load_tokenizer(demo_model), [[5, 6]], [[7, 8]]) == [[5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("facts", "flag", "end"),
    [({}, "auto", []), ({"ends_with": "<|endoftext|>"}, "auto", [1]), ({}, "eos", [1]),
     ({"ends_with": "<|endoftext|>"}, "none", []), (None, "auto", [1]), (None, "none", [])],
)  # fmt: skip
def test_what_toolkit_json_says_counts_unless_a_flag_does(
    facts: dict | None, flag: str, end: list[int], demo_model: str, tmp_path: Path
) -> None:
    if facts is not None:
        (tmp_path / "toolkit.json").write_text(json.dumps(facts))
    tokenizer = load_tokenizer(demo_model)
    reading = reading_of(tmp_path, tokenizer, flag)
    assert reading.rows(tokenizer, [[5, 6]], [[7]]) == [[5, 6, 7, *end]]
    assert reading.text_rows(tokenizer, [PROMPT], [" Good."]) == [
        tokenizer(f"{PROMPT} Good.")["input_ids"] + end
    ]


def test_messages_through_another_template_than_the_rewards_are_refused(chat: str) -> None:
    prompts = given_prompts([{"prompt": USER}], load_tokenizer(chat), read_chat("plain"))
    with pytest.raises(InputError, match="trained on messages by the tokenizer's own, .* by plain"):
        Reading().check(prompts)
    Reading(chat=prompts.chat).check(prompts)
    Reading(whole=True).check(prompts)  # a stock model's messages are rendered whole


def test_text_ids_of_nothing_are_nothing(demo_model: str) -> None:
    assert text_ids(load_tokenizer(demo_model), []) == []


# What a hostile tester found.


def test_a_stock_model_of_a_tokenizer_that_appends_eos_saw_both_ends(
    variant: Callable[..., str], tmp_path: Path
) -> None:
    """TRL writes the end's text, and its tokenizer then appends another: its rows are asked."""
    folder = variant(single="$A <|endoftext|>")
    tokenizer = load_tokenizer(folder)
    expected = trl_rows(folder, False, tmp_path)
    assert expected[0][-2:] == [1, 1]
    reading = reading_of(tmp_path, tokenizer)
    prompts = given_prompts([{"prompt": PROMPT}] * 2, tokenizer)
    kept = text_ids(tokenizer, [" Good.", " No!"])
    assert reading.rows(tokenizer, prompts, kept) == expected
    assert reading.text_rows(tokenizer, [PROMPT] * 2, [" Good.", " No!"]) == expected


@pytest.mark.parametrize(
    ("trained_on", "prompt", "refused"),
    [("messages", PROMPT, True), ("messages", USER, False), ("text", USER, True),
     ("text", PROMPT, False), ("both", PROMPT, False), ("messages", "<|im_start|>user\nHi", False)],
)  # fmt: skip
def test_a_reward_model_scores_the_kind_of_prompt_that_it_was_trained_on(
    trained_on: str, prompt: Any, refused: bool, chat: str
) -> None:
    prompts = given_prompts([{"prompt": prompt}], load_tokenizer(chat))
    reading = Reading(trained_on=trained_on)
    if not refused:
        return reading.check(prompts)
    with pytest.raises(InputError, match=f"it was trained on {trained_on}, but there are prompts"):
        reading.check(prompts)
    return None


def test_an_end_token_at_which_text_is_truncated_is_hidden_from_the_scorer(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    rule = sampling_rule(tokenizer, 4, 1.0, "none", tokenizer.eos_token, 0)
    ids = torch.tensor([[20, 21, 1, 22], [20, 21, 22, 23]])
    seen, valid = rule.visible(Sampled(ids, torch.ones_like(ids, dtype=torch.bool), ids * 0.0))
    assert [row[mask].tolist() for row, mask in zip(ids, seen, strict=True)] == [
        [20, 21],
        [20, 21, 22, 23],
    ]
    assert valid.tolist() == [True, False]
    dot = sampling_rule(tokenizer, 4, 1.0, None, ".", 0)  # part of the text: it stays
    full_stop = dot.truncate_id
    ids = torch.tensor([[20, full_stop, 22, 23]])
    seen, _ = dot.visible(Sampled(ids, torch.ones_like(ids, dtype=torch.bool), ids * 0.0))
    assert ids[seen].tolist() == [20, full_stop]


def test_white_space_behind_an_answer_is_no_end_of_turn(variant: Callable[..., str]) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    folder = variant("blank", template=template)
    path = Path(folder) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["\n\n"])
    tokenizer.save(str(path))
    assert load_tokenizer(folder).turn_end_id is None


def test_a_split_of_a_saved_dataset_is_named_or_said(
    demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(demo_model)
    DatasetDict(
        {
            name: Dataset.from_list([{"prompt": text}])
            for name, text in (("train", "We ate."), ("test", "It rained."))
        }
    ).save_to_disk(str(tmp_path / "saved"))
    (test,), _ = read_prompts(f"{tmp_path / 'saved'}:test", tokenizer, 64)
    assert test == tokenizer("It rained.")["input_ids"]
    capsys.readouterr()
    (train,), _ = read_prompts(tmp_path / "saved", tokenizer, 64)
    assert train == tokenizer("We ate.")["input_ids"]
    assert "split train of train, test" in capsys.readouterr().out
