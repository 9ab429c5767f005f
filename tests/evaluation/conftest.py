"""What the recipes leave behind, of which a test says only what it is about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.data.files import write_json, write_jsonl
from toolkit.data.prompts import Prompts
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.frontier import frontier
from toolkit.evaluation.head_to_head import compare, contender_results, gaps, length_lines
from toolkit.evaluation.result import ContenderResult, Evaluation, JudgeResult, SeenPrompts
from toolkit.evaluation.samples import SampleRow, sample_rows, write_samples

HOSTILE = [
    "<script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">",
    "</table></details><h1>out</h1>", "<svg onload=document.title='owned'>",
    "<iframe src=http://127.0.0.1:9/x></iframe>", "<a href=\"javascript:alert(1)\">x</a>",
    "<style>body{display:none}</style>", "<link rel=stylesheet href=http://127.0.0.1:9/y.css>",
    "{{ 7 * 7 }}{% for x in y %}", "\x1b[31mred\x1b[0m \x1b]0;owned\x07", "\u202egnp.exe\u202c",
    "\u200bzero\u200bwidth\ufeff", "&lt;script&gt;", "\x00null\x08back", "' onmouseover='alert(1)",
    "<!-- comment", "]]><![CDATA[", "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9'>",
    "a" * 300_000, "\ud800 half <b>bold</b>", "<form action=http://127.0.0.1:9><input name=q>",
]  # fmt: skip
LOG = [
    {
        "update": i,
        "episode": 10 * i,
        "objective/scores": i / 10,
        "objective/kl": 5 + (i % 2) * 0.2,
        "objective/kl_target": 5.0,
        "objective/kl_coef": 0.1,
        "objective/entropy": 20.0,
    }
    for i in range(1, 11)
]
METRICS = {"accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.7, "chance": 0.25, "p": 1e-9,
           "comparisons": 100, "loss": 1.0, "prompts": 90}  # fmt: skip


@pytest.fixture
def contender_row() -> Callable[..., dict[str, object]]:
    """A contender as evaluation.json has it, by its name and what is told of it."""

    def make(name: str, **told: object) -> dict[str, object]:
        row: dict[str, object] = dict.fromkeys(
            (
                "words",
                "distinct_1",
                "distinct_2",
                "repetition",
                "unique",
                "new_sentences",
                "copied_3grams",
                "copies_opening",
            ),
            0.5,
        )
        row |= {"name": name, "kind": "adapter", "source": "x", "adapter": "/x", "n": 1}
        row |= {"tokens": 8.0, "kl": 1.0, "kl_error": 0.25, "scores": {}}
        return row | told

    return make


@pytest.fixture
def contender_result(contender_row: Callable[..., dict[str, object]]) -> Callable[..., object]:
    """The same as it is read; nothing is known of the prompts that it was trained on."""

    def make(name: str, **told: object) -> ContenderResult:
        unknown = {"trained_prompts": None, "trained_prompts_note": None}
        return ContenderResult(**contender_row(name, **unknown | told))  # type: ignore[arg-type]

    return make


def make_evaluation(
    texts: list[str], shift: float = 1.0, kind: str = "adapter"
) -> tuple[Evaluation, list[SampleRow]]:
    """A result and its sample rows: the reference, and one that is better by ``shift``."""
    name = "ppo" if kind == "adapter" else "ppo@2"
    contenders = [Contender("reference", "reference"), Contender(name, kind, "x")]
    if kind == "checkpoint":
        contenders.insert(1, Contender("ppo@1", kind, "y"))
    count = len(texts)
    made, scores = {}, {"rm": {}, "<b>truth</b>": {}}
    for place, c in enumerate(contenders):
        made[c.name] = Outputs(texts, None, [0.5 * place] * count, [3] * count)
        scores["rm"][c.name] = [(i * 7 % 5) + shift * place for i in range(count)]
        scores["<b>truth</b>"][c.name] = [(i * 3 % 5) + place for i in range(count)]
    not_trained = SeenPrompts(trained_prompts=0, trained_prompts_note=None)
    trained = dict.fromkeys(made, not_trained)
    # The reference writes 0, 1, 2 tokens and so on, and each other contender 2 more than the last.
    tokens = {c.name: [i + 2 * place for i in range(count)] for place, c in enumerate(contenders)}
    results = contender_results(contenders, made, scores, texts, trained, tokens)
    pairs, ratings = compare([c.name for c in contenders], scores, {})
    curve = frontier(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), 1.0)
    result = Evaluation(
        prompts=count,
        contenders=results,
        vocabulary=None,
        chat_template=None,
        chat_template_kwargs={},
        reference="reference",
        judges=[JudgeResult(name, "function", name == "rm") for name in scores],
        pairs=pairs,
        ratings=ratings,
        gaps=gaps(results, pairs, "rm"),
        frontier={"rm": curve},
        lengths=length_lines("reference", scores, tokens),
    )
    asked = Prompts([[i] for i in range(count)])
    asked.given = dict(enumerate(texts))
    tokenizer: Any = None  # nothing is decoded
    return result, sample_rows(asked, tokenizer, made, scores)


def leave_behind(tmp_path: Path) -> Path:
    """Folders as ppo.py, reward.py, evaluate.py and label.py leave them, with hostile texts."""
    write_jsonl(tmp_path / "ppo" / "log.jsonl", LOG)
    timings = [{"update": i, "seconds": 2.0, "peak_mb": 100 + i} for i in range(1, 11)]
    write_jsonl(tmp_path / "ppo" / "timings.jsonl", timings)
    facts = {
        "settings": {"model_name_or_path": "<b>base</b>", "precision": "fp32"},
        "versions": {"torch": "2"},
    } | {"seed": 3, "git": "abc", "device": "cpu", "written": "today"}
    write_json(tmp_path / "ppo" / "run.json", facts)
    history = [{"step": 5, "loss": 1.3, "accuracy": 0.4}, {"step": 9, "loss": 1.1, "accuracy": 0.5}]
    write_json(tmp_path / "reward" / "run.json", facts | {"metrics": METRICS, "history": history})
    result, samples = make_evaluation(HOSTILE)
    result.write(tmp_path / "evaluation" / "evaluation.json")
    write_samples(tmp_path / "evaluation", samples)
    comparisons = [
        {"prompt": p, "completions": ["a b", "c"], "best": b, "labeler": who}
        for p, b, who in [
            ("p", 0, "ann"),
            ("p", 0, "bob"),
            ("q", 1, "ann"),
            ("q", 0, "bob"),
            ("r", 1, HOSTILE[0]),
        ]
    ]
    write_jsonl(tmp_path / "comparisons.jsonl", comparisons)
    return tmp_path


@pytest.fixture(scope="session")
def hostile() -> list[str]:
    """Texts that would do something if they were not escaped."""
    return HOSTILE


@pytest.fixture(scope="session")
def evaluation() -> Callable[..., tuple[Evaluation, list[SampleRow]]]:
    """Makes a result and its sample rows of texts."""
    return make_evaluation


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folders as the recipes leave them."""
    return leave_behind(tmp_path)


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that only read them."""
    return leave_behind(tmp_path_factory.mktemp("runs"))
