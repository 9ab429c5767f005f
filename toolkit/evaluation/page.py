"""Write self-contained HTML pages, light and dark, with all texts escaped."""

import base64
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from toolkit.data.files import write_bytes, write_text
from toolkit.data.text import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(path: str | Path, template: str, title: str, **values: object) -> None:
    """Write a page from one of ``TEMPLATES``, atomically.

    Strings are escaped, and invisible characters are written out (filter ``shown``).
    """
    environment = Environment(autoescape=True, loader=FileSystemLoader(TEMPLATES))
    environment.filters["shown"] = lambda text: printable(str(text))
    write_text(path, environment.get_template(template).render(title=title, **values))


NARROW = 4.2  # inches, for a screen of up to 40 rem, on which such a figure can be read


def picture(
    draw: Callable[[Figure], None],
    alt: str,
    size: tuple[float, float],
    save: Path | None = None,
    narrow: bool = False,
) -> Markup:
    """Draw a figure of ``size`` inches as a <picture> with a light and a dark image.

    Args:
        draw: draws it, whatever its size.
        alt: what it shows.
        size: width and height.
        save: where the light image is also written, as a PNG.
        narrow: draw it for narrow screens too, which otherwise scroll it sideways.
    """
    dark = "(prefers-color-scheme: dark)"
    sources = []
    if narrow:
        small = (NARROW, size[1])
        sources.append((f"(max-width: 40rem) and {dark}", _drawn(draw, small, True)))
        sources.append(("(max-width: 40rem)", _drawn(draw, small, False)))
    sources.append((dark, _drawn(draw, size, True)))
    bright = _drawn(draw, size, False)
    if save is not None:
        write_bytes(save, bright)

    others = Markup("").join(
        Markup('<source media="{}" srcset="{}">').format(media, _as_url(image))
        for media, image in sources
    )
    return Markup('<picture{}>{}<img alt="{}" src="{}"></picture>').format(
        Markup(' class="fits"') if narrow else "", others, alt, _as_url(bright)
    )


def _drawn(draw: Callable[[Figure], None], size: tuple[float, float], dark: bool) -> bytes:
    """Draw a figure; return it as a PNG."""
    with _dark() if dark else rc_context():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _as_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"


def _dark() -> AbstractContextManager[None]:
    """Return matplotlib's settings for the dark page."""
    back, front = "#16181b", "#e4e4e4"
    return rc_context(
        {
            "figure.facecolor": back,
            "axes.facecolor": back,
            "savefig.facecolor": back,
            "legend.facecolor": back,
            "text.color": front,
            "axes.labelcolor": front,
            "axes.edgecolor": front,
            "xtick.color": front,
            "ytick.color": front,
            "axes.titlecolor": front,
            "grid.color": "#888888",
        }
    )
