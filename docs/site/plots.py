"""Draw the tables of `benchmarks/README.md`, one small SVG a table, of the same bytes each time."""

import re

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {"svg.hashsalt": "opnorm", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
)
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

OURS, THEIRS, NONE = "#0072b2", "#d55e00", "#777777"  # Okabe and Ito: told apart without colour vision too


def table(text, name):
    """Return the rows of the table `name` as dictionaries by column; none where no figures were taken yet."""
    found = re.search(rf"<!-- {name}:begin -->\n(\|.*?)<!-- {name}:end -->", text, re.DOTALL)
    if not found:
        return []
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in found[1].strip().splitlines())
    return [dict(reversed([*zip(header, row, strict=True)])) for row in rows]  # of two columns of one name the first


def colour(name):
    """Return the colour of a variant."""
    return OURS if "opnorm" in name else NONE if name in ("none", "no constraint") else THEIRS


def draw_costs(axes, rows, title):
    """Draw what each variant's step costs, over the step without, with its quartiles."""
    for place, row in enumerate(reversed(rows)):
        ratio = float(row.get("over no constraint") or row["over none"])
        low, high = map(float, row["quartiles"].split(" to "))
        axes.plot([low, high], [place] * 2, color=colour(row["variant"]), linewidth=3, alpha=0.35)
        axes.plot(ratio, place, "o", color=colour(row["variant"]), markersize=5)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in reversed(rows)])
    axes.axvline(1, color=NONE, linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize=9)


def groups(rows, *columns):
    """Return the rows by what they have in these columns, in their order."""
    found = {}
    for row in rows:
        found.setdefault(", ".join(row[column] for column in columns), []).append(row)
    return found


def costs(*columns):
    """Return a function that draws a panel for each value of these columns."""

    def draw(rows):
        panels = groups(rows, *columns)
        down = len(groups(rows, columns[-1])) if len(columns) > 1 else len(panels)
        across = len(panels) // down
        size = (2.6 + 2.4 * across, 0.24 * len(rows) / across + 0.45 * down + 0.3)
        heights = [len(some) for some in panels.values()][:down]
        shared = {"sharex": True, "sharey": "row" if across > 1 else False, "height_ratios": heights}
        figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained", **shared)
        for one, (title, some) in zip(axes.T.flat, panels.items(), strict=True):
            draw_costs(one, some, title)
        for one in axes[-1]:
            one.set_xlabel("a step, over the step without")
        return figure

    return draw


def draw_tracking(rows):
    """Draw how far wrapped kernels stray from norm 1, at most."""
    panels = groups(rows, "backend")
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 2.6), sharey=True, layout="constrained")
    for one, (backend, some) in zip(axes, panels.items(), strict=True):
        for wrapper, line in groups(some, "wrapper").items():
            x = [row["learning rate"] for row in line]
            y = [float(row["largest"].rstrip(" %")) for row in line]
            style = "s--" if wrapper.startswith("torch") else "o-"
            one.plot(x, y, style, color=colour(wrapper), label=wrapper)
        one.axhline(2, color=NONE, linewidth=0.8, linestyle=":")
        one.set(title=backend, xlabel="learning rate", yscale="log")
        one.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("largest distance from 1, %")
    return figure


def draw_networks(rows):
    """Draw each method's bound of each network, over the product of the norms."""
    figure, axes = plt.subplots(figsize=(8, 0.24 * len(rows) + 0.8), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        for name, style, one in (("ECLipsE-Fast", "s", THEIRS), ("LipSDP", "|", NONE), ("opnorm", "o", OURS)):
            if row[name]:
                size = 11 if style == "|" else 5
                ratio = float(row[name]) / float(row["product"])
                axes.plot(ratio, place, style, color=one, markersize=size, markeredgewidth=1.5, label=name)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), frameon=False, loc="upper left")
    axes.set_yticks(range(len(rows)), [f"{row['network']}, {row['slopes']}" for row in reversed(rows)])
    axes.set(xlabel="bound, over the product of the norms", xlim=(0, 1.02))
    return figure


PLOTS = {
    "constraint_overhead": (costs("backend", "network"), "What each variant costs in training, by backend and network"),
    "tracking": (draw_tracking, "How far wrapped kernels stray, by backend and learning rate"),
    "native": (costs("network"), "What each variant costs in plain PyTorch"),
    "native-jax": (costs("framework"), "What each variant costs in plain JAX"),
    "networks": (draw_networks, "Bounds of networks by three methods, over the product of the norms"),
}


def draw_tables(text, folder):
    """Draw the tables that have rows into `folder`; return what each picture shows, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, (draw, shows) in PLOTS.items():
        rows = table(text, name)
        if rows:
            figure = draw(rows)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
            plt.close(figure)
            drawn[name] = shows
    return drawn
