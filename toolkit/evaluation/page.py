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


def picture(
    draw: Callable[[Figure], None], alt: str, size: tuple[float, float], save: Path | None = None
) -> Markup:
    """Draw a figure of ``size`` inches as a <picture> with a light and a dark image.

    If ``save`` is given, the light image is also written there as a PNG.
    """
    sources = []
    for dark in (False, True):
        with _dark() if dark else rc_context():
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
        if save is not None and not dark:
            write_bytes(save, buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
        sources.append(Markup("data:image/png;base64,{}").format(encoded))
    bright, dim = sources
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}">'
        '<img alt="{}" src="{}"></picture>'
    ).format(dim, alt, bright)


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
