"""Against whom ROUGE is measured."""

from toolkit.evaluation.contenders import Contender
from toolkit.evaluation.summaries import Summaries


def test_a_persons_texts_are_not_measured_against_themselves() -> None:
    known = Summaries(["a b c"], "summary", ["a b"])
    same = known.rouge_of(Contender("policy", "adapter", "summary"), ["a b"])
    assert same is not None and same.rouge_1 == 1.0
    assert known.rouge_of(Contender("human", "column", "summary"), ["a b"]) is None
    assert known.rouge_of(Contender("other", "column", "second"), ["a b"]) == same
    assert Summaries(["a b c"]).rouge_of(Contender("policy", "adapter"), ["a b"]) is None
