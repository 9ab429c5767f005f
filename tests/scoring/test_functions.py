"""Users' functions: found, given lists of their own, and stopped in one line."""

import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.scoring import functions
from toolkit.scoring.functions import call_reward_function, load_function
from toolkit.scoring.lexicon import Lexicon

CHAT = [{"role": "user", "content": "Hi."}]
SAID = [{"role": "assistant", "content": "Ho."}]


def test_what_a_function_edits_is_its_own() -> None:
    def edits(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        prompts[0][0]["content"] = "changed"
        completions[0][0]["content"] = "changed"
        columns["facts"][0]["n"] = 7
        prompts.clear(), completions.clear(), columns.clear()
        return [1.0]

    prompts, completions, columns = [[dict(CHAT[0])]], [[dict(SAID[0])]], {"facts": [{"n": 1}]}
    assert call_reward_function(edits, prompts, completions, columns) == [1.0]
    assert (prompts, completions, columns) == ([CHAT], [SAID], {"facts": [{"n": 1}]})


def test_what_it_returns_is_read_while_it_is_a_guest(capsys: pytest.CaptureFixture[str]) -> None:
    def lazy(prompts: list[Any], completions: list[Any]) -> Any:
        for _ in completions:
            sys.exit(0)
            yield 1.0

    with pytest.raises(InputError, match=r"reward function lazy: .*it called sys.exit\(0\)"):
        call_reward_function(lazy, ["p"], ["c"], {})


@pytest.mark.parametrize(
    ("body", "said"),
    [("import sys; sys.exit(0)", "it called sys.exit"), ("raise SystemExit", "it called sys.exit"),
     ("exit()", "it called sys.exit"), ("1/0", "ZeroDivisionError"), ("x = (", "SyntaxError")],
)  # fmt: skip
def test_a_module_that_ends_at_its_import_is_named(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"ends_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"{body}\n\n\ndef score(**_):\n    return []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(InputError, match=f"^reward_function: {name}: .*{said}") as caught:
        load_function(f"{name}:score")
    assert caught.value.field == "reward_function"


def test_the_toolkits_own_scorers_are_no_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.txt").write_text("good\t1.5\n")
    monkeypatch.setattr(functions, "as_guest", lambda _: pytest.fail("it costs time"))
    lexicon = Lexicon(tmp_path / "words.txt")
    assert call_reward_function(lexicon, ["p"], ["a good one"], {"n": [1]}) == [1.5]
