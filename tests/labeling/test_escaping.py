"""Text on the page is data: escaped, and what an eye would miss is written out."""

import pytest

from toolkit.labeling.escaping import shown


def test_characters_that_an_eye_would_miss_are_written_out() -> None:
    assert shown("a\u202eb\nc") == 'a<span class="hidden-character">\\u202e</span>b\nc'
    assert shown("<b>\tfür 你好 🙂") == "&lt;b&gt;\tfür 你好 🙂"


@pytest.mark.slow
def test_a_text_of_nothing_but_hidden_characters_does_not_stop_the_page() -> None:
    """Pieces are joined once: 400,000 characters took minutes when each was put to the whole."""
    for text in ("\u200d" * 400_000, "a\u200d" * 100_000, "\n" * 400_000):
        assert len(shown(text)) >= len(text)
