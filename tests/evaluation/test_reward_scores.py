"""Comparisons become the tokens that the reward model saw in training."""

import pytest

from toolkit.data.encoding import Encoder
from toolkit.errors import InputError
from toolkit.evaluation.reward_scores import check_kind, encode_as_read
from toolkit.models.loading import load_tokenizer
from toolkit.models.reading import Reading


def test_rows_that_fit_are_encoded_with_their_end_and_the_others_are_counted(
    demo_model: str,
) -> None:
    tokenizer = load_tokenizer(demo_model)
    rows = [
        {"prompt": "We went.", "completions": [" It was good.", " It was bad."], "best": 0},
        {"prompt": "We went.", "completions": [" It was good.", " Bad." * 60], "best": 0},
        {"prompt": "We ran.", "completions": [" Good.", " Bad."], "best": 1},
    ]
    placed = [(f"c:{i}", row) for i, row in enumerate(rows, start=1)]
    end = tokenizer.eos_token_id
    for reading in (Reading(ends_with=end), Reading(ends_with=end, whole=True)):
        found = encode_as_read(placed, Encoder(tokenizer, 60), reading, tokenizer)
        assert found.rows == [rows[0], rows[2]] and found.too_long == 1
        texts = [rows[2]["prompt"] + text for text in rows[2]["completions"]]
        wanted = [[*ids, end] for ids in tokenizer(texts)["input_ids"]]
        if reading.whole:  # as TRL: the end is a part of one text
            wanted = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
        assert found.ids[1]["candidate_ids"] == wanted


def test_texts_are_refused_where_messages_were_trained_on_and_the_reverse() -> None:
    rendered = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    text, messages = "Hi.", [{"role": "user", "content": "Hi."}]
    for kind, fine, wrong in (("messages", [messages, rendered], text), ("text", [text], messages)):
        reading = Reading(trained_on=kind)
        check_kind([("c:1", {"prompt": prompt}) for prompt in fine], reading, "rm")
        with pytest.raises(InputError, match=rf"^c:2: its prompt is \w+, but rm was .* {kind}"):
            check_kind([("c:1", {"prompt": fine[0]}), ("c:2", {"prompt": wrong})], reading, "rm")
    check_kind([("c:1", {"prompt": text}), ("c:2", {"prompt": messages})], Reading(), "rm")
