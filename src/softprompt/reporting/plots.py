"""Plots of a run, as PNG files of 150 dots per inch.

matplotlib is imported on the first picture, and drawn on through its object-oriented API: no pyplot,
no window, and the user's own matplotlib settings neither show in our pictures nor change.
Colours are Okabe and Ito's, which colour-blind readers tell apart; no line is marked by colour alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import DataError, MissingExtraError
from ..storage.atomic import atomic_path
from ..storage.record import EpochRecord

_DPI = 150
_BLUE, _ORANGE, _GREEN, _PURPLE, _AMBER = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00"
_INK, _PALE = "#222222", "#8A8A8A"
_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.0,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _PALE,
    "xtick.color": _PALE,
    "ytick.color": _PALE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.6,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
}
# DejaVu Sans comes with matplotlib but has no Chinese, Japanese or Korean; labels may be in any language.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans",
          "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "WenQuanYi Micro Hei")  # fmt: skip


def plot_loss(history: Sequence[EpochRecord], path: str | os.PathLike[str], *, best_step: int | None = None) -> None:
    """Plot the losses per epoch and, in a second panel, accuracy and macro-F1 if they were measured.

    Args:
        history: the records of a run, oldest first.
        path: the PNG file, written atomically.
        best_step: step of the record to mark as best; without it the best macro-F1 is marked, else the
            lowest evaluation loss, else none.

    Raises:
        DataError: no record has a loss or a score.
        MissingExtraError: matplotlib is absent.
    """
    losses = [("training", _series(history, "train_loss"), _BLUE, "-", ""),
              ("validation", _series(history, "eval_loss"), _ORANGE, "--", "o")]  # fmt: skip
    scores = [("accuracy", _series(history, "accuracy"), _GREEN, "-", "o"),
              ("macro-F1", _series(history, "macro_f1"), _PURPLE, "--", "s")]  # fmt: skip
    panels = [panel for panel in (losses, scores) if any(points for _, points, *_ in panel)]
    if not panels:
        raise DataError("there is no loss or score to draw; the history is empty")
    best = _best_record(history, best_step)
    with figure_to((4.0 * len(panels) + 0.6, 3.1), path) as figure:
        figure.get_layout_engine().set(wspace=0.07)
        for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            _draw_lines(axes, panel)
            if panel is losses:
                _loss_scale(axes, [y for _, points, *_ in panel for _, y in points])
            else:
                low = min(y for _, points, *_ in panel for _, y in points)
                axes.set_ylim(max(0.0, low - 0.08), 1.015)
                axes.set_ylabel("validation score")
            if best is not None:
                _mark_best(axes, panel, best.epoch)
            axes.legend(loc="best", handlelength=2.6)


def plot_confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Plot a confusion matrix: the colour is the share of a row, the text is count and share if there is room.

    Args:
        matrix: counts ``[C, C]``, rows are gold.
        labels: the C labels.
        path: the PNG file, written atomically.

    Raises:
        DataError: the matrix is not square, or does not fit the labels.
        MissingExtraError: matplotlib is absent.
    """
    count = len(labels)
    if not count or len(matrix) != count or any(len(row) != count for row in matrix):
        raise DataError(f"the confusion matrix must be square with one row for each of {count} labels")
    shares = [[cell / sum(row) if sum(row) else 0.0 for cell in row] for row in matrix]
    cell = min(max(0.17, min(0.95, 5.2 / count)), 20 / count)  # inches
    names = [_shorten(label) for label in labels]
    margin = 0.95 + 0.068 * max(len(name) for name in names)
    side = cell * count
    with figure_to((side + margin + 0.9, side + margin), path) as figure:
        axes = figure.subplots()
        names = [_drawable(name) for name in names]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        _white_grid(axes, count, cell)
        _name_ticks(axes, names, cell)
        axes.set_xlabel("predicted label")
        axes.set_ylabel("true label")
        _write_cells(axes, matrix, shares, cell)
        bar = _colour_bar(axes, image, side, "share of the rows of a true label")
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def plot_prompt(
    norms: Sequence[float],
    start_distances: Sequence[float] | None,
    similarity: Sequence[Sequence[float]],
    path: str | os.PathLike[str],
    *,
    vocabulary_norm: float | None = None,
) -> None:
    """Plot the norms of a prompt's virtual tokens, their distances from the initial ones, and their similarities.

    Args:
        norms: Euclidean norm of each virtual token, ``[P]``.
        start_distances: Euclidean distance of each from where it started, ``[P]``; ``None`` if unknown.
        similarity: cosine similarity of each with each, ``[P, P]``.
        path: the PNG file, written atomically.
        vocabulary_norm: typical norm of a vocabulary embedding, as a line to compare with.

    Raises:
        DataError: the sizes do not fit each other.
        MissingExtraError: matplotlib is absent.
    """
    count = len(norms)
    lengths = {len(similarity), *(len(row) for row in similarity), len(start_distances or norms)}
    if not count or lengths != {count}:
        raise DataError(f"{count} norms need as many distances and a square similarity, not {sorted(lengths)}")
    extra = min(5.0, 0.05 * max(0, count - 16))  # inches: many bars need room
    with figure_to((9.2 + extra, 3.7), path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.35 + extra / 3.8, 1.0))
        _draw_bars(left, norms, start_distances, vocabulary_norm)
        image = right.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest",
                             extent=(0.5, count + 0.5, count + 0.5, 0.5))  # fmt: skip
        right.set_xlabel("virtual token")
        right.set_ylabel("virtual token")
        right.spines[:].set_visible(False)
        for axis in (left.xaxis, right.xaxis, right.yaxis):
            _count_from_one(axis, count)
        _colour_bar(right, image, 2.9, "cosine similarity").set_ticks((-1, -0.5, 0, 0.5, 1))


@contextmanager
def figure_to(inches: tuple[float, float], path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield an empty figure in our style; write it to ``path`` on success."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import get_font_names
    except ImportError:
        raise MissingExtraError("matplotlib", "demo", "drawing pictures") from None
    here = set(get_font_names())
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(("backend", "_"))}
    ours = {**defaults, **_STYLE, "font.family": [name for name in _FONTS if name in here]}
    with matplotlib.rc_context(ours):
        figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            # Without the Software entry the bytes of the file do not depend on matplotlib's version string.
            figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.08,
                           metadata={"Software": None})  # fmt: skip


def _series(history: Sequence[EpochRecord], name: str) -> list[tuple[float, float]]:
    """The measured values of ``name``: pairs (epoch, value)."""
    return [(record.epoch, y) for record in history if (y := getattr(record, name)) is not None]


def _best_record(history: Sequence[EpochRecord], best_step: int | None) -> EpochRecord | None:
    if best_step is not None:
        return next((record for record in history if record.step == best_step), None)
    scored = [record for record in history if record.macro_f1 is not None]
    if scored:
        return max(scored, key=lambda record: record.macro_f1 or 0.0)
    measured = [record for record in history if record.eval_loss is not None]
    return min(measured, key=lambda record: record.eval_loss or 0.0, default=None)


def _draw_lines(axes: Any, panel: Sequence[tuple[str, list[tuple[float, float]], str, str, str]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, points, colour, line, marker in panel:
        if points:
            x, y = zip(*points, strict=True)
            # Many markers overlap; a single point without one is invisible.
            marker = "o" if len(points) == 1 else marker if len(points) <= 40 else ""
            axes.plot(x, y, line, color=colour, marker=marker, label=name)
    epochs = [x for _, points, *_ in panel for x, _ in points]
    axes.set_xlim(min(0.0, *epochs), max(epochs) + max(0.3, 0.03 * max(epochs)))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.grid(axis="y")


def _loss_scale(axes: Any, values: Sequence[float]) -> None:
    """Label the loss axis; it is logarithmic if a high first loss would flatten the rest."""
    if min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.06 * max(values) or 1.0)
    axes.set_ylabel("loss (nats per label token)")


def _mark_best(axes: Any, panel: Sequence[tuple[str, list[tuple[float, float]], str, str, str]], epoch: float) -> None:
    """Mark the best epoch with a thin line, and its values with rings."""
    axes.axvline(epoch, color=_PALE, linewidth=0.9, linestyle=":", zorder=1, label=f"best: epoch {epoch:g}")
    for _, points, colour, *_ in panel:
        here = [(x, y) for x, y in points if x == epoch]
        if here:
            axes.plot(*here[0], "o", markersize=8, markerfacecolor="none", markeredgecolor=colour, zorder=3)


def _colour_bar(axes: Any, image: Any, side: float, label: str) -> Any:
    """A colour bar to the right of ``axes`` (``side`` inches high), at most as high as it."""
    height = min(1.0, 4 / side)
    place = axes.inset_axes((1 + 0.12 / side, 0.5 - height / 2, 0.13 / side, height))
    bar = axes.figure.colorbar(image, cax=place)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def _white_grid(axes: Any, count: int, cell: float) -> None:
    axes.spines[:].set_visible(False)
    edges = [index - 0.5 for index in range(1, count)]
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=min(1.5, 4 * cell))
    axes.tick_params(which="minor", length=0)


def _name_ticks(axes: Any, names: Sequence[str], cell: float) -> None:
    """Write the labels along both sides, vertically where columns are narrow."""
    size = min(9.0, max(5.5, cell * 72 * 0.62))
    step = max(1, round(0.1 / cell))  # with more than some 200 labels, some are omitted
    places = range(0, len(names), step)
    shown = [names[place] for place in places]
    # parse_math: a label such as "$5 off" is text, not a formula.
    axes.set_yticks(places, shown, fontsize=size, parse_math=False)
    axes.set_xticks(places, shown, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    widest = max(len(name) for name in shown) * size * 0.6 / 72
    if widest > 0.95 * cell:
        turn = {"rotation": 90} if cell < 0.4 else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        for text in axes.get_xticklabels():
            text.set(**turn)


def _write_cells(axes: Any, matrix: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], cell: float) -> None:
    """Write count and share into the cells, the count alone, or nothing, whatever there is room for."""
    digits = max(len(str(value)) for row in matrix for value in row)
    room = cell * 72  # points
    both = min(9.0, room / 2.9, 0.84 * room / (0.62 * max(digits, 4)))
    alone = min(8.0, 0.84 * room / (0.62 * max(digits, 2)))
    if alone < 4.5:
        return
    with_share = both >= 6.5
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value == 0 and len(matrix) > 6:
                continue  # empty cells stay empty, so that the errors stand out
            text = f"{value}\n{shares[i][j]:.0%}" if with_share else str(value)
            colour = "white" if shares[i][j] > 0.55 else _INK
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=both if with_share else alone)


def _draw_bars(
    axes: Any, norms: Sequence[float], start_distances: Sequence[float] | None, vocabulary_norm: float | None
) -> None:
    places = range(1, len(norms) + 1)
    width = 0.4 if start_distances is not None else 0.7
    shift = width / 2 if start_distances is not None else 0.0
    handles = [axes.bar([x - shift for x in places], norms, width, color=_BLUE, label="norm")]
    if start_distances is not None:
        moved = [x + shift for x in places]
        handles.append(axes.bar(moved, start_distances, width, color=_AMBER, label="distance from start"))
    if vocabulary_norm is not None:
        line = axes.axhline(vocabulary_norm, color=_INK, linewidth=1.1, linestyle="--")
        line.set_label("typical vocabulary norm")
        handles.append(line)
    axes.set_xlabel("virtual token")
    axes.set_ylabel("Euclidean length")
    axes.set_xlim(0.4, len(norms) + 0.6)
    axes.grid(axis="y")
    # Above the axes: bars may fill every corner of the panel.
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3,
                borderaxespad=0.2, handlelength=1.3, handletextpad=0.5, columnspacing=1.1)  # fmt: skip


def _count_from_one(axis: Any, count: int) -> None:
    """Integer ticks from 1, at most twelve."""
    step = next(
        step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count / step <= 12 or step >= count
    )
    axis.set_ticks(sorted({1, *range(step, count + 1, step)} - ({step} if step == 2 else set())))


def _drawable(text: str) -> str:
    """``text`` with a box for each character that the fonts lack: matplotlib draws one too, but warns each time."""
    from matplotlib import rcParams
    from matplotlib.font_manager import findfont, get_font

    known = set().union(*(get_font(findfont(name)).get_charmap() for name in rcParams["font.family"]))
    return "".join(character if ord(character) in known else "\N{WHITE SQUARE}" for character in text)


def _shorten(label: str, most: int = 30) -> str:
    """A label on one line, shortened if it is long."""
    line = " ".join(label.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
