"""Charts as SVG text, small enough that one fills a phone's width."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

_INK, _QUIET, _ACCENT = "#22303c", "#8493a3", "#1f6f8b"
_COLOURS = (_ACCENT, "#c0632d", "#5b7f3b", "#8a5a9e", "#b08d2a", "#5a6b7a", "#a03c50")
_WIDTH, _HEIGHT = 4.4, 2.9  # inches


class Chart(NamedTuple):
    """A drawing and its caption, which also stands for it where it cannot be seen.

    Attributes:
        svg: an `<svg>` element, for the middle of a page.
        caption: plain text.
    """

    svg: Markup
    caption: str


def curves(
    series: Mapping[str, Sequence[float | None]],
    caption: str,
    *,
    percent: bool = False,
    logarithmic: bool = False,
) -> Chart:
    """One line per name over the epochs.

    Args:
        series: name -> a value per epoch, None where there is none.
        caption: what the chart shows.
        percent: values are shares.
        logarithmic: scale of the values.
    """
    figure, axes = _figure()
    for index, (name, values) in enumerate(series.items()):
        pairs = [(e, v) for e, v in enumerate(values, start=1) if v is not None]
        style = "o" if len(pairs) == 1 else "-"
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(*zip(*pairs), style, color=colour, label=name, linewidth=1.6)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0),
                ncols=min(2, len(series)), fontsize=8, frameon=False,
                labelcolor=_INK)  # fmt: skip
    return _chart(figure, caption)


def bars(values: Sequence[float], names: Sequence[str], caption: str) -> Chart:
    """One bar per name, `values` not negative; a dashed line at their mean."""
    figure, axes = _figure()
    axes.bar(range(len(values)), values, color=_ACCENT, width=0.75)
    mean = sum(values) / len(values)
    axes.axhline(mean, color=_COLOURS[1], linewidth=1.2, linestyle="--")
    _name_ticks(axes.xaxis, names)
    return _chart(figure, caption)


def points(
    pairs: Sequence[tuple[Any, float]], caption: str, across: str, up: str
) -> Chart:
    """One dot per pair of what stands `across`, a number or a word, and a value `up`.

    Positive numbers across that differ more than twentyfold: a logarithmic scale.

    Args:
        pairs: at least one.
        caption: what the chart shows.
        across: name of the horizontal axis.
        up: name of the vertical one.
    """
    figure, axes = _figure()
    places, values = zip(*pairs)
    if not all(isinstance(place, (int, float)) for place in places):
        places = [str(place) for place in places]
    elif min(places) > 0 and max(places) > 20 * min(places):
        axes.set_xscale("log")
    axes.plot(places, values, "o", color=_ACCENT, markersize=5, alpha=0.75)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return _chart(figure, caption)


def matrix(
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    caption: str,
    axes_names: tuple[str, str],
    *,
    counts: bool,
) -> Chart:
    """A table of numbers as colours; up to 150 cells show their numbers, too.

    Args:
        rows: of numbers that are not negative; None where there is none.
        row_names, column_names: one each.
        caption: what the chart shows.
        axes_names: what rows are, what columns are.
        counts: whole numbers, in a square chart, zeros not written; else shares.
    """
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array(rows, float)
    figure, axes = _figure(height=_WIDTH * 0.92 if counts else _HEIGHT, grid=False)
    # Roots: a handful of mistakes stays visible beside hundreds of hits.
    highest = np.nanmax(values) if np.isfinite(values).any() else 1
    shades = np.sqrt(values / (highest or 1))
    colours = LinearSegmentedColormap.from_list("", ["#f7f9fa", "#7fb2c4", "#134b60"])
    axes.imshow(shades, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if values.size <= 150 and np.isfinite(value) and (value or not counts):
            text = f"{value:.0f}" if counts else f"{value:.2f}"
            colour = "white" if shades[y, x] > 0.6 else _INK
            axes.text(x, y, text, ha="center", va="center", size=7.5, color=colour)
    _name_ticks(axes.xaxis, column_names)
    _name_ticks(axes.yaxis, row_names)
    axes.set(ylabel=axes_names[0], xlabel=axes_names[1])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _chart(figure, caption)


def _figure(height: float = _HEIGHT, grid: bool = True) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Without pyplot: no window, no state of the process.
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot(axisbelow=True)
    axes.tick_params(labelsize=8, colors=_INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(size=8.5, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_QUIET)
    if grid:
        axes.grid(axis="y", color="#e3e8ec", linewidth=0.8)
    return figure, axes


def _name_ticks(axis, names: Sequence[str]) -> None:
    """Every name where there is room, else every n-th."""
    places = range(0, len(names), max(1, -(-len(names) // 16)))
    # A dollar would begin a formula.
    shown = [str(names[place])[:12].replace("$", r"\$") for place in places]
    long = max(map(len, shown)) > 2 and len(shown) > 6 and axis.axis_name == "x"
    turn = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axis.set_ticks(places, shown, **turn)


def _chart(figure, caption: str) -> Chart:
    """The figure as SVG for the middle of a page."""
    import matplotlib

    file = io.StringIO()
    # Text as text: a third of the bytes, and it can be searched and read aloud.
    settings = {"svg.fonttype": "none", "font.family": "sans-serif"}
    # Ids are a hash: the same chart, the same bytes; another one, other ids.
    with (
        matplotlib.rc_context(settings | {"svg.hashsalt": caption}),
        warnings.catch_warnings(),
    ):
        # Of letters that its fonts lack: the browser draws them.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    # Names that nothing refers to would occur twice on a page of several charts.
    known = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in known else "", svg)
    head, rest = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    head = head.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"')
    return Chart(Markup(f"{head}>{rest}"), caption)
