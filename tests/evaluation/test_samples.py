"""samples.jsonl: what is written is read back, and what was edited by hand is found out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.data.files import write_json, write_jsonl
from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.head_to_head import contender_results
from toolkit.evaluation.result import SeenPrompts, Written
from toolkit.evaluation.samples import read_samples, sample_rows, write_samples
from toolkit.maths.frontier import best_of_n_kl
from toolkit.models.loading import load_tokenizer

NOT_TRAINED = SeenPrompts(trained_prompts=0, trained_prompts_note=None)


def test_samples_are_read_back_as_they_were(demo_model: str, tmp_path: Path) -> None:
    contenders = [Contender("ref", "reference"), Contender("b4", "best_of_n", "ref", 4)]
    made = {
        "ref": Outputs(["é", "\x1b[31m"], None, [0.0, 0.0], [1, 2]),
        "b4": Outputs(["b", "c"], None, [0.5, -0.25], [3, 4], best_of_n_kl(4)),
    }
    scores = {"s": {"ref": [1.0, 2.0], "b4": [3.0, 4.0]}}
    asked = Prompts([[7, 8], [9]], {"tag": [None, 3]})
    asked.given = {0: "p", 1: [{"role": "user", "content": "q"}]}
    tokenizer = load_tokenizer(demo_model)
    write_samples(tmp_path, sample_rows(asked, tokenizer, made, scores))
    trained = dict.fromkeys(made, NOT_TRAINED)
    written = Written(
        prompts=2,
        contenders=contender_results(contenders, made, scores, ["p", "q"], trained),
        vocabulary=None,
        chat_template=None,
        chat_template_kwargs=None,
    )
    written.write(tmp_path / "evaluation.json")
    found = read_samples(tmp_path / "samples.jsonl")
    read = found.outputs
    assert found.contenders == contenders and found.asked == asked.asked(tokenizer)
    assert found.prompt_ids == [[7, 8], [9]]
    for name, one in made.items():
        assert read[name].texts == one.texts and read[name].log_ratios == one.log_ratios
        assert read[name].kl_of_picking == pytest.approx(one.kl_of_picking, abs=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [("log_ratios", {"policy": "nan"}), ("log_ratios", {"policy": True}),
     ("log_ratios", {"policy": None}), ("tokens", {"policy": "7", "reference": 1}),
     ("scores", {"judge": {"policy": "inf"}}), ("scores", {"judge": "nan"})],
)  # fmt: skip
def test_samples_with_a_word_for_a_number_are_named_by_line(
    field: str, value: object, tmp_path: Path, contender_row: Callable[..., dict[str, object]]
) -> None:
    row = {
        "prompt": "a",
        "completions": {"reference": "b", "policy": "c"},
        "scores": {},
        "log_ratios": {"policy": 0.5},
        "tokens": {"reference": 1, "policy": 1},
    }
    write_jsonl(tmp_path / "samples.jsonl", [row, row | {field: value}])
    rows = [contender_row(name, kl=None) for name in ("reference", "policy")]
    write_json(tmp_path / "evaluation.json", {"contenders": rows, "prompts": 2})
    with pytest.raises(InputError, match=r"samples.jsonl:2: .*(is not a number|missing)"):
        read_samples(tmp_path)
