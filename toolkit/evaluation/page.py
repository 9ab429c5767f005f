"""One self-contained HTML page, light and dark; every text in it is escaped."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from toolkit.data.files import write_bytes, write_text
from toolkit.data.text import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(path: str | Path, template: str, title: str, **values: Any) -> None:
    """Write a page from one of ``TEMPLATES``, atomically.

    Strings are escaped, and characters that an eye would miss are written out (filter ``shown``).
    """
    environment = Environment(autoescape=True, loader=FileSystemLoader(TEMPLATES))
    environment.filters["shown"] = lambda text: printable(str(text))
    write_text(path, environment.get_template(template).render(title=title, **values))


def picture(
    draw: Callable[[Figure], None], alt: str, size: tuple[float, float], save: Path | None = None
) -> Markup:
    """What ``draw`` puts on a figure of ``size`` inches, as a <picture> for light and for dark.

    With ``save``, the light one is written there too, as a PNG.
    """
    sources = []
    for style in (LIGHT, DARK):
        with rc_context(style):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
        if save is not None and style is LIGHT:
            write_bytes(save, buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
        sources.append(Markup("data:image/png;base64,{}").format(encoded))
    light, dark = sources
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}">'
        '<img alt="{}" src="{}"></picture>'
    ).format(dark, alt, light)


LIGHT: Any = {}
DARK: Any = {
    name: value
    for value, names in {
        "#16181b": ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"),
        "#e4e4e4": ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color",
                    "axes.titlecolor"),
        "#888888": ("grid.color",),
    }.items()
    for name in names
}  # fmt: skip
