"""The audit as one HTML page that loads nothing: its script draws the embedded JSON, whose numbers it shows."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from opnorm.auditing.ordering import depth_order

_SCRIPTS = ("audit.js", "table.js", "plots.js")  # the table comes first: a plot that fails leaves it
Spectra = Mapping[str, Sequence[tuple[int, float]]]


def render(document: Mapping[str, Any], spectra: Spectra) -> str:
    """Return the page.

    Args:
        document: What `Report.to_json` writes.
        spectra: Singular values by tensor, as (index, value).
    """
    import jinja2
    from markupsafe import Markup

    loader = jinja2.PackageLoader("opnorm.auditing")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    folder = files("opnorm.auditing") / "templates"
    beside = {"spectra": spectra, "order": depth_order([row["name"] for row in document["rows"]])}
    return environment.get_template("audit.html.j2").render(
        document=document,
        data=Markup(embedded(document)),  # escaped by `embedded`
        beside=Markup(embedded(beside)),
        style=Markup((folder / "audit.css").read_text(encoding="utf-8")),  # the package's own
        script=Markup("".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)),
    )


def embedded(value: Any) -> str:
    """Return `value` as JSON that no text inside it can end: it stands between <script> tags, and names are hostile."""
    text = json.dumps(value, allow_nan=False)  # ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
