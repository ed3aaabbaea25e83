"""Figures as files, in one style."""

import io
from collections.abc import Callable
from typing import Any

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
}


def png(draw: Callable[[Any], Any], size: tuple[float, float] = (7.2, 3.6)) -> bytes:
    """What `draw(figure)` draws, as the bytes of a PNG file.

    **Arguments:** `draw`, which may change the size; `size`, width and height in inches.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
