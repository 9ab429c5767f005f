"""Pages: text is escaped, and a picture comes for light and for dark."""

import base64
import re
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.evaluation.page import NARROW, picture, render


def test_text_is_escaped_and_what_an_eye_would_miss_is_written_out(tmp_path: Path) -> None:
    facts = [("a\u202eb", "<i>", "no")]
    path = tmp_path / "page.html"
    render(path, "run_report.html", "<b>title</b>", facts=facts, identities={})
    page = path.read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;title&lt;/b&gt;</title>" in page
    assert "a\\u202eb" in page and "\u202e" not in page and "&lt;i&gt;" in page


def test_a_picture_is_drawn_light_and_dark_and_the_light_one_is_saved(tmp_path: Path) -> None:
    backgrounds = []

    def draw(figure: Figure) -> None:
        figure.subplots().plot([0, 1], [0, 1])
        backgrounds.append(figure.get_facecolor())

    markup = picture(draw, "a <line>", (2, 1), tmp_path / "line.png")
    assert backgrounds[1] == (1.0, 1.0, 1.0, 1.0) and max(backgrounds[0][:3]) < 0.2
    assert 'alt="a &lt;line&gt;"' in markup

    dark, light = re.findall(r"base64,([^\"]+)", markup)
    assert base64.b64decode(light) == (tmp_path / "line.png").read_bytes()
    assert dark != light and base64.b64decode(dark).startswith(b"\x89PNG")


def test_a_picture_for_narrow_screens_is_drawn_as_wide_as_they_are() -> None:
    widths = []

    def draw(figure: Figure) -> None:
        figure.subplots().plot([0, 1], [0, 1])
        widths.append(figure.get_figwidth())

    markup = picture(draw, "a line", (9, 3), narrow=True)
    assert widths == [NARROW, NARROW, 9, 9] and '<picture class="fits">' in markup
    media = re.findall('media="([^"]+)"', markup)  # the first that holds is taken
    assert media == [
        "(max-width: 40rem) and (prefers-color-scheme: dark)",
        "(max-width: 40rem)",
        "(prefers-color-scheme: dark)",
    ]
    assert len(set(re.findall(r"base64,([^\"]+)", markup))) == 4
