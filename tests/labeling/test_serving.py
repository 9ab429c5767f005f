"""The page's links are printed once, and a known name keeps its own."""

import re
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling import serving
from toolkit.labeling.arguments import StoreArguments
from toolkit.labeling.store import Asked, Store


def rows(count: int) -> list[dict[str, Any]]:
    secret = {
        "model": "secret-model",
        "adapter": "secret-adapter",
        "update": 987654,
        "temperature": 0.77,
        "seed": 55,
    }
    return [
        {
            "prompt": f"Text {i}.",
            "completions": [f" {word} {i}" for word in "abcd"],
            "source": secret,
            "scores": [0.123456, 2.0, 3.0, 4.0],
            "side": ["policy"],
        }
        for i in range(count)
    ]


def test_on_the_command_line_a_known_name_keeps_its_link_unless_a_flag_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "serve", lambda app, listening: listening.close())
    with Store(tmp_path / "labels.sqlite") as store:

        def serve(invite: str, **options: Any) -> str:
            names = StoreArguments(serve=True, invite=invite).names
            serving.serve_page(store, "127.0.0.1", 0, names, **options)
            return capsys.readouterr().out

        first = serve("ann, ann,bob,,")
        assert len(re.findall("invite link for ann", first)) == 1  # the second would end the first
        ann = store.invitation("ann")
        assert (
            "ann already has a link (--reinvite" in serve("ann") and store.invitation("ann") == ann
        )
        assert "invite link for ann" in serve("ann", reinvite=True)
        assert store.invitation("ann") not in (None, ann)

        bot = store.script("bot")
        store.add_items(rows(1))
        task = store.next_task(bot)
        assert task is not None and store.record(bot, task.form, "pick", 0)
        with pytest.raises(InputError, match="invite: 'bot' is a script"):
            serve("cleo,bot")
        assert store.invitation("cleo") is None  # nobody saw a link of hers


def test_the_page_says_what_is_asked_if_nobody_wrote_guidelines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "serve", lambda app, listening: listening.close())
    told = []
    monkeypatch.setattr(
        serving, "AdminPages", lambda store, settings, _: told.append(settings) or Pages
    )
    chat = {"prompt": [{"role": "user", "content": "Hi."}], "completions": ["a", "b"]}
    with Store(tmp_path / "labels.sqlite") as store:
        for items, asked, said in (
            (rows(1), Asked(), "Pick the completion that continues the text best."),
            ([chat], Asked(), "Pick the best answer."),
            ([], Asked("ranking", comment=True), "Put the completions in order"),
        ):
            store.add_items(items)
            store.settle(asked)
            serving.serve_page(store, "127.0.0.1", 0)
            assert told[-1].guidelines.startswith(said)
    assert [settings.body_limit >> 10 for settings in told] == [16, 16, 640]
    assert "people are asked for: ranking, comment\n" in capsys.readouterr().out


class Pages:
    """A page that is not served."""

    @staticmethod
    def app() -> None:
        """Nothing to serve."""
