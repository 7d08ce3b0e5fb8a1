"""Charts as SVG text, small enough that one fills a phone's width."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

INK, QUIET, ACCENT = "#22303c", "#8493a3", "#1f6f8b"
_COLOURS = (ACCENT, "#c0632d", "#5b7f3b", "#8a5a9e", "#b08d2a", "#5a6b7a", "#a03c50")
_WIDTH, _HEIGHT = 4.4, 2.9  # inches


def curves(
    series: Mapping[str, Sequence[float | None]],
    label: str,
    *,
    percent: bool = False,
    logarithmic: bool = False,
) -> str:
    """One line per name over the epochs.

    Args:
        series: name -> a value per epoch, None where there is none.
        label: what the chart shows, for readers who cannot see it.
        percent: values are shares.
        logarithmic: scale of the values.
    """
    figure, axes = _figure(label)
    for (name, values), colour in zip(series.items(), _repeated()):
        points = [(e, v) for e, v in enumerate(values, start=1) if v is not None]
        style = "o" if len(points) == 1 else "-"
        axes.plot(*zip(*points), style, color=colour, label=name, linewidth=1.6)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(_ticker().LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(_ticker().FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_locator(_ticker().NullLocator())
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if percent:
        axes.yaxis.set_major_formatter(_ticker().PercentFormatter(1, decimals=0))
    axes.grid(axis="y", color="#e3e8ec", linewidth=0.8)
    _legend(axes, len(series))
    return _svg(figure, label)


def bars(
    values: Sequence[float], names: Sequence[str], label: str, expected: float | None
) -> str:
    """One bar per name; a line at `expected`."""
    figure, axes = _figure(label)
    axes.bar(range(len(values)), values, color=ACCENT, width=0.75)
    if expected is not None:
        axes.axhline(expected, color=_COLOURS[1], linewidth=1.2, linestyle="--")
    _name_ticks(axes.xaxis, names)
    axes.grid(axis="y", color="#e3e8ec", linewidth=0.8)
    return _svg(figure, label)


def points(pairs: Sequence[tuple[Any, float]], label: str, across: str, up: str) -> str:
    """One dot per pair; numbers over two orders of magnitude on a log scale.

    Args:
        pairs: what stands across, a number or a word, and the value above it.
        label: what the chart shows, for readers who cannot see it.
        across: name of the one.
        up: name of the other.
    """
    figure, axes = _figure(label)
    places, values = zip(*pairs)
    if all(isinstance(place, (int, float)) for place in places):
        if min(places) > 0 and max(places) > 20 * min(places):
            axes.set_xscale("log")
    else:
        places = [str(place) for place in places]
    axes.plot(places, values, "o", color=ACCENT, markersize=5, alpha=0.75)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", color="#e3e8ec", linewidth=0.8)
    return _svg(figure, label)


def matrix(
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    label: str,
    *,
    axes_names: tuple[str, str],
    form: str = "{:.0f}",
    square: bool = True,
) -> str:
    """A table of numbers as colours; small tables show the numbers, too."""
    import numpy as np

    values = np.array(rows, float)
    figure, axes = _figure(label, height=_WIDTH * 0.92 if square else _HEIGHT)
    # Roots: a handful of mistakes stays visible beside hundreds of hits.
    highest = np.nanmax(values) if np.isfinite(values).any() else 1
    shades = np.sqrt(values / (highest or 1))
    axes.imshow(shades, cmap=_shades(), vmin=0, vmax=1, aspect="auto")
    if values.size <= 150:
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value) and (value or not square):
                colour = "white" if shades[y, x] > 0.6 else INK
                axes.text(x, y, form.format(value), ha="center", va="center",
                          fontsize=7.5, color=colour)  # fmt: skip
    _name_ticks(axes.xaxis, column_names)
    _name_ticks(axes.yaxis, row_names)
    axes.set_ylabel(axes_names[0])
    axes.set_xlabel(axes_names[1])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure, label)


def _figure(label: str, height: float = _HEIGHT) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Without pyplot: no window, no state of the process.
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot(axisbelow=True)
    axes.tick_params(labelsize=8, colors=INK)
    axes.xaxis.label.set(size=8.5, color=INK)
    axes.yaxis.label.set(size=8.5, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    return figure, axes


def _legend(axes, count: int) -> None:
    columns = 1 if count < 2 else 2
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns,
                fontsize=8, frameon=False, labelcolor=INK)  # fmt: skip


def _name_ticks(axis, names: Sequence[str]) -> None:
    """Every name where there is room, else every n-th."""
    every = max(1, -(-len(names) // 16))
    places = list(range(0, len(names), every))
    shown = [str(names[place])[:12] for place in places]
    long = max(map(len, shown)) > 2 and len(shown) > 6 and axis.axis_name == "x"
    turn = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axis.set_ticks(places, shown, **turn)


def _repeated():
    while True:
        yield from _COLOURS


def _shades():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("quiet", ["#f7f9fa", "#7fb2c4", "#134b60"])


def _ticker():
    from matplotlib import ticker

    return ticker


def _svg(figure, label: str) -> str:
    """The figure as SVG for the middle of a page."""
    import matplotlib

    text = io.StringIO()
    # Text as text: a third of the bytes, and it can be searched and read aloud.
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Charts share one page: names that nothing refers to would occur twice.
    known = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(
        r' id="([\w-]+)"', lambda m: m.group() if m.group(1) in known else "", svg
    )
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    name = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
