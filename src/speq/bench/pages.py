"""A report as one page: figures, tables and plots in a single HTML file that loads nothing, on any screen."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speq.bench.plots import require_matplotlib
from speq.bench.spec import ALL

_INK = "#123456"  # drawn with, and replaced by the page's own colour
_WIDTH = 4.8  # inches, so that letters are of the page's size on a phone
_PARTS = ("drafters", "draft passes", "verify passes", "rest")
_DPI = 72.0

Row = Mapping[str, Any]


def spec_page(report: Mapping[str, Any]) -> str:
    """The page of a report of ``speq bench spec``, as the dict that its JSON file holds.

    Raises:
        SpeqError: matplotlib is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    results = report["results"]
    rows: Sequence[Row] = results["spec"]
    whole = [row for row in rows if row["category"] == ALL]
    drafts = [row["draft"] for row in whole]
    plots = [
        {"title": title, "svg": Markup(svg), "caption": caption} for title, svg, caption in _plots(results, drafts)
    ]
    machine, settings, made_by = report["machine"], report["settings"], report["versions"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("spec.html").render(
        report,
        whole=whole,
        groups=[(draft, [row for row in rows if row["draft"] == draft]) for draft in drafts],
        compared=f"{sum(row['tokens'] for row in whole):,}",
        differing=sum(row["differing"] for row in whole),
        plots=plots,
        stages=[row for row in results["spec_stages"] if row["category"] == ALL and row["proposed"]],
        prompts=results["spec_prompts"],
        about=[("machine", machine), ("model", report["model"]), ("settings", settings), ("version", made_by)],
    )


def _plots(results: Mapping[str, Sequence[Row]], drafts: Sequence[str]) -> list[tuple[str, str, str]]:
    """Title, SVG and caption of every plot there are figures for."""
    colours = {draft: f"C{at % 10}" for at, draft in enumerate(drafts)}
    found = []
    prompts, positions, times = results["spec_prompts"], results["spec_positions"], results["spec_time"]
    if prompts:
        categories = list(dict.fromkeys(row["category"] for row in prompts))
        lines = len(categories) * (1 + len(drafts)) / 2
        found.append(
            (
                "Speed-up of every prompt",
                _svg(lambda axes: _speed_ups(axes, prompts, categories, colours), 0.9 + 0.28 * lines, 1),
                "A dot is a prompt, the upright mark a category's geometric mean; left of the line at 1 a draft loses.",
            )
        )
    own = [row for row in positions if row["category"] == ALL]
    if own:
        found.append(
            (
                "Acceptance by position",
                _svg(lambda axes: _acceptance(axes, own, colours), 3.2, 2),
                "Of the tokens at a position that follow right ones, the share that is right: solid by the exact "
                "level, dashed by the draft level. Positions that were met fewer than ten times are left out where "
                "there are others.",
            )
        )
    parts = [row for row in times if row["category"] == ALL]
    if parts:
        found.append(
            (
                "Where the time goes",
                _svg(lambda axes: _times(axes, parts, results["spec"], drafts), 1.3 + 0.35 * (len(drafts) + 1), 3),
                "Milliseconds of decoding per token, by medians of tokens per second. Drafters: what they take beside "
                "their passes. The rest is everything that is no pass.",
            )
        )
    return found


def _svg(draw: Callable[[Any], None], height: float, number: int) -> str:
    """A drawing as SVG for a page: no declarations, names of its own, lines and letters in the page's colour."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style = dict.fromkeys(inked, _INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": "speq",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        drawing = Drawing(figsize=(_WIDTH, height), layout="constrained")
        axes = drawing.add_subplot()
        draw(axes)
        text = io.StringIO()
        drawing.savefig(text, format="svg", transparent=True, dpi=_DPI, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1plot{number}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", '<svg role="img"', 1).replace(_INK, "currentColor")


def _speed_ups(axes: Any, rows: Sequence[Row], categories: Sequence[str], colours: Mapping[str, str]) -> None:
    room = 1 + len(colours)
    for at, category in enumerate(categories):
        for line, (draft, colour) in enumerate(colours.items()):
            ratios = [row["speed_up"] for row in rows if (row["category"], row["draft"]) == (category, draft)]
            if not ratios:
                continue
            y = at * room + line
            label = draft if at == 0 else None
            axes.plot(ratios, [y] * len(ratios), "o", color=colour, alpha=0.55, markersize=4, label=label)
            mean = 1.0
            for ratio in ratios:
                mean *= ratio ** (1 / len(ratios))
            axes.plot([mean, mean], [y - 0.42, y + 0.42], color=colour, linewidth=2)
    axes.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_yticks([at * room + (len(colours) - 1) / 2 for at in range(len(categories))], categories)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s over those of plain decoding")
    axes.get_figure().legend(loc="outside upper center", ncols=min(len(colours), 4))


def _acceptance(axes: Any, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    often = [row for row in rows if row["tested"] >= 10] or rows
    for draft, colour in colours.items():
        for level in dict.fromkeys(row["level"] for row in often):
            line = [row for row in often if (row["draft"], row["level"]) == (draft, level)]
            if line:
                shares = [row["acceptance_rate"] for row in line]
                style = "o-" if level == "exact" else "s--"
                label = draft if level == "exact" else f"{draft}, by {level}"
                axes.plot([row["position"] for row in line], shares, style, color=colour, markersize=3, label=label)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("position in the proposal")
    axes.set_ylabel("share that is right")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.get_figure().legend(loc="outside upper center", ncols=2)


def _times(axes: Any, rows: Sequence[Row], groups: Sequence[Row], drafts: Sequence[str]) -> None:
    rates = {row["draft"]: row for row in groups if row["category"] == ALL}
    parts = list(dict.fromkeys([*(part for part in _PARTS if any(row["part"] == part for row in rows))]))
    parts += [part for part in dict.fromkeys(row["part"] for row in rows) if part not in parts]
    names = ["plain", *drafts]
    plain = 1000 / next(iter(rates.values()))["plain_rate"]
    axes.barh(["plain"], [plain], color="grey", height=0.65)
    left = dict.fromkeys(drafts, 0.0)
    for number, part in enumerate(parts):
        shares = {row["draft"]: row["share"] for row in rows if row["part"] == part}
        widths = [shares.get(draft, 0.0) * 1000 / rates[draft]["rate"] for draft in drafts]
        axes.barh(drafts, widths, left=list(left.values()), color=f"C{number}", label=part, height=0.65)
        for draft, width in zip(drafts, widths, strict=True):
            left[draft] += width
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms per token")
    axes.get_figure().legend(loc="outside upper center", ncols=2)
