"""One self-contained page from a template and values that may hold anything: each is escaped, and no other code runs.

The page brings its own scripts and says so by their hashes (Content-Security-Policy): a browser executes these, and
nothing else that may have got into it; and it asks for nothing over the network.
"""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dtrain.files import replace_text


def write(path: Path, template: str, values: dict[str, Any], data: dict[str, Any]) -> None:
    """Replaces the file by the template's page. data: JSON for the page's scripts, NaN and infinities as null."""
    scripts = [_plotly(), (files("dtrain.report") / "report.js").read_text()]
    style = (files("dtrain.report") / "report.css").read_text()
    page = _environment().get_template(template)
    policy = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    html = page.render(
        values=values, data=finite(data), policy=policy, scripts=map(Markup, scripts), style=Markup(style)
    )  # fmt: skip
    replace_text(path, html.encode("utf-8", "replace").decode())  # a path may hold bytes that are no text


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dtrain.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    # Keys of any type, in their own order. What could end a script element is escaped by the filter itself.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["short"] = short
    return environment


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    bundle: str = get_plotlyjs()
    return bundle


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def finite(value: Any) -> Any:
    """JSON content with null in the place of NaN and infinities."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(value: Any) -> str:
    """A number to five digits, anything else as text; "" for None."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
