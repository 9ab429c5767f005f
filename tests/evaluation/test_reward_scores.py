"""Comparisons become the tokens that the reward model saw in training."""

from toolkit.data.encoding import Encoder
from toolkit.evaluation.reward_scores import encode_as_read
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
