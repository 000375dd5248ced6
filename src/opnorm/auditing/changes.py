"""The summary of a comparison: how many weights changed, by how much, and what is told of their subspaces."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from opnorm.tables import number

Rows = Sequence[Mapping[str, Any]]


def summarized(rows: Rows) -> dict[str, Any]:
    """Return the summary of the rows of a comparison's JSON, as the JSON has it."""
    known = [row for row in rows if row["difference"] is not None]
    changed = [row for row in known if row["difference"]["upper"] > 0]
    relative = [row for row in changed if row["relative"] is not None]
    largest = max(relative, key=lambda row: row["relative"], default=None)
    ranks = [row["rank"] for row in changed if row["rank"] is not None]
    return {
        "compared": len(known),
        "changed": len(changed),
        "largest": largest and {"name": largest["name"], "relative": largest["relative"]},
        "median": median(row["relative"] for row in relative) if relative else None,
        "ranks": sum(ranks) if ranks else None,
        "failed": sum(row["status"] == "failed" for row in rows),
    }


def told(summary: Mapping[str, Any]) -> str:
    """Return the summary in a line."""
    parts = [f"{summary['changed']} of {summary['compared']} weights changed"]
    if summary["largest"]:
        name, most = summary["largest"]["name"], number(summary["largest"]["relative"], 4)
        parts.append(f"most {name}, by {most} of its norm; the median {number(summary['median'], 4)}")
    if summary["ranks"] is not None:
        parts.append(f"ranks up to {summary['ranks']} in all")
    if summary["failed"]:
        parts.append(f"{summary['failed']} NOT known")
    return "; ".join(parts)


def turned_cells(row: Mapping[str, Any]) -> list[str]:
    """Return effective rank, overlaps and intruders as cells, empty where they were not asked for."""
    found = row["subspaces"]
    if not found:
        return ["", "", ""]
    overlaps = "/".join(number(found[key], 2) for key in ("overlap_out", "overlap_in"))
    return [number(found["effective_rank"], 3), overlaps, str(found["intruders"])]


def turned(row: Mapping[str, Any]) -> str:
    """Return what is told of a row's subspaces after its status, "" where they were not asked for."""
    found = row["subspaces"]
    if not found:
        return ""
    overlaps = " and ".join(number(found[key], 3) for key in ("overlap_out", "overlap_in"))
    rank, intruders = number(found["effective_rank"], 4), found["intruders"]
    return f"; effective rank {rank}, overlap of {found['leading']}: {overlaps}, intruders {intruders}"
