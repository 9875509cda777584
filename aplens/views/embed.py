"""Views as documents of their own: safe for any text, in need of no network, framed in a notebook.

Three walls stand between the text of a prompt and the page. It is escaped, for HTML or for JSON
inside HTML. The document's Content-Security-Policy lets nothing run but the scripts whose hashes it
lists, and lets nothing be fetched. And the notebook frames the document in an `<iframe sandbox>`
without `allow-same-origin`, from where no script reaches the notebook.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from aplens._io import atomic_write
from aplens._words import displayable


@dataclass(frozen=True, repr=False)
class View:
    """A picture that a notebook shows inline: the last line of a cell is enough.

    Attributes:
        title: What it shows.
        html: The whole standalone document.
        height: Height of its frame in a notebook, in pixels; what is longer scrolls.
        runs_scripts: Whether the document has scripts at all.
    """

    title: str
    html: str
    height: int
    runs_scripts: bool = False

    def __repr__(self) -> str:
        return f"View({self.title!r}, {len(self.html.encode()) / 1000:,.0f} kB)"

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self.html)}" '
            f'sandbox="{"allow-scripts" if self.runs_scripts else ""}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the document as one HTML file that needs nothing else, and return its path.

        Raises:
            OSError: When the file cannot be written.
        """
        with atomic_write(path) as temporary:
            temporary.write_text(self.html, encoding="utf-8")
        return Path(path)


def build_view(
    template: str, title: str, height: int, *, scripts: Sequence[str] = (), **context: Any
) -> View:
    """Fill in a template and put it under a policy that allows these scripts and nothing else.

    Everything in `context`, its variables, is escaped, `Markup` excepted.
    """
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    title = displayable(title)
    document = render_template(template, title=title, policy=policy, **context)
    return View(title, document, height, runs_scripts=bool(scripts))


def render_template(name: str, **context: Any) -> str:
    """A template of this package; every text in it is escaped, and can be seen."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("aplens.views"),
        autoescape=True,
        finalize=lambda value: displayable(value, "\n\t") if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**context)


@lru_cache
def read_script(name: str) -> str:
    """A script of this package."""
    return (resources.files("aplens.views") / "templates" / name).read_text(encoding="utf-8")


def to_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def pack(data: bytes) -> str:
    """Bytes as text for the browser's `DecompressionStream`: gzip, then base64."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode("ascii")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
