"""Plots of figures that were kept: each table that is worth one has its own, written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speq.bench.results import Figure, rows_of
from speq.checkpoint.storage import make_dir, writing_to
from speq.errors import SpeqError

_MARKERS = {"plain": "o", "draft": "s", "verify": "^"}
_SIZE = (7.0, 4.5)  # inches


def draw(found: Sequence[Figure], directory: Path, stem: str) -> list[Path]:
    """Draw all plots of some figures into ``directory``; returns the files, named ``STEM-PLOT.png`` and ``.svg``.

    Figures of several runs, by date, commit, machine and model, get a plot for each, numbered from the second on.

    Raises:
        SpeqError: matplotlib is missing, there is nothing to plot, the directory is not writable.
    """
    require_matplotlib()
    made: list[Path] = []
    make_dir(directory)
    with writing_to(directory):
        for name, figure in _plots(found):
            for kind in ("png", "svg"):
                path = directory / f"{stem}-{name}.{kind}"
                figure.savefig(path, dpi=150, bbox_inches="tight")
                made.append(path)
    if not made:
        raise SpeqError(f"{stem} has nothing to plot: give figures of kernels, passes or engines")
    return made


def require_matplotlib() -> None:
    """Make ready for drawing without a screen.

    Raises:
        SpeqError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise SpeqError("plots need matplotlib: install it with `pip install 'speq[bench]'`") from None
    matplotlib.use("Agg")


def _plots(found: Sequence[Figure]) -> Iterator[tuple[str, Any]]:
    from matplotlib.figure import Figure as Drawing

    plots: dict[str, tuple[str, set[str], Callable[[Any, list[dict[str, Any]]], None]]] = {
        "kernels": ("roofline", {"bandwidth", "peak", "operations", "bytes", "gflops"}, _roofline),
        "passes": ("cost", {"plain_ratio"}, _cost),
        "engines": ("engines", {"rate", "low", "high"}, _engines),
    }
    for table, (name, needed, plot) in plots.items():
        runs: dict[tuple[str, ...], list[Figure]] = {}
        for each in found:
            if each.table == table:
                runs.setdefault((each.model, each.machine, each.date, each.commit), []).append(each)
        for number, ((model, *about), run) in enumerate(runs.items(), 1):
            rows = rows_of(run, table)
            if lacking := sorted({key for row in rows for key in needed - set(row)}):
                raise SpeqError(f"the plot {name} needs {', '.join(lacking)} of every row: measure again")
            drawing = Drawing(figsize=_SIZE)
            axes = drawing.add_subplot()
            plot(axes, rows)
            axes.set_title(model, loc="left")
            drawing.text(0.01, -0.03, ", ".join(about), size=7)
            yield name if number == 1 else f"{name}-{number}", drawing


def _roofline(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Operations per byte of weights against their speed, under what memory and plain float32 arithmetic allow."""
    bandwidth, peak = (sorted(row[key] for row in rows)[len(rows) // 2] for key in ("bandwidth", "peak"))
    intensities = [row["operations"] / row["bytes"] for row in rows]
    ends = [min(intensities) / 1.5, max(intensities) * 1.5]
    axes.plot(ends, [end * bandwidth / 1e9 for end in ends], color="grey", label=f"{bandwidth / 1e9:.0f} GB/s, as read")
    axes.axhline(peak / 1e9, color="grey", linestyle=":", label="a large float32 product by NumPy")
    for kind, marker in _MARKERS.items():
        chosen = [row for row in rows if row["kind"] == kind]
        x = [row["operations"] / row["bytes"] for row in chosen]
        axes.plot(x, [row["gflops"] for row in chosen], marker, label=kind, alpha=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of weights")
    axes.set_ylabel("GFLOP/s")
    axes.legend()


def _cost(axes: Any, rows: list[dict[str, Any]]) -> None:
    """What a pass costs by the number of its tokens, in plain passes."""
    exact = [row for row in rows if row["kind"] != "draft"]
    axes.plot([row["tokens"] for row in exact], [row["plain_ratio"] for row in exact], "o-", label="exact pass")
    draft = [row for row in rows if row["kind"] == "draft"]
    if len(draft) > 1:
        axes.plot([row["tokens"] for row in draft], [row["plain_ratio"] for row in draft], "s-", label="draft pass")
    for row in draft:
        if row["tokens"] == 1:
            axes.axhline(row["plain_ratio"], linestyle="--", color="C1", label="draft pass, one token")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the pass")
    axes.set_ylabel("time / plain pass")
    axes.legend()


def _engines(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Tokens per second by engine, medians with quartiles."""
    ordered = sorted(rows, key=lambda row: float(row["rate"]))
    rates = [row["rate"] for row in ordered]
    spread = [
        [row["rate"] - row["low"] for row in ordered],
        [row["high"] - row["rate"] for row in ordered],
    ]
    colours = ["C0" if row["engine"].startswith("speq") else "grey" for row in ordered]
    bars = axes.barh([row["engine"] for row in ordered], rates, xerr=spread, color=colours, ecolor="black", capsize=3)
    axes.bar_label(bars, fmt="%.1f", padding=6)
    axes.margins(x=0.12)
    axes.set_xlabel("tokens per second")
