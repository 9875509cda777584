"""What the site has that no page holds: links between examples and pages, the table of names."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LINK = re.compile(r'href="\.\./docs/([^"#]+)')
_NAME_IN_TABLE = re.compile(r"(?<=<t[dh]>)[a-z ]+\+[a-z +]+")

#: A name below mkdocs, so that a strict build counts its warnings.
_log = logging.getLogger("mkdocs.hooks.aplens")


#: Where the reference describes modules that have no page of their own.
_PAGES = {"prompts": "models", "ranking": "heads"}


def public_names() -> Iterator[tuple[str, str]]:
    """Each public name, in the order a user meets them, with the module that has it."""
    stub = Path(__file__).parent.parent / "aplens" / "__init__.pyi"
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:  # not the rooms themselves
            yield from ((alias.name, str(node.module)) for alias in node.names)


def table_of_names() -> str:
    """The pages of the reference and the public names on each, as Markdown."""
    links: dict[str, list[str]] = {}
    for name, module in public_names():
        page = _PAGES.get(module, module)
        links.setdefault(page, []).append(f"[`{name}`]({page}.md#aplens.{module}.{name})")
    rows = [f"| [{page}]({page}.md) | {', '.join(names)} |" for page, names in links.items()]
    return "\n".join(["| page | names |", "|---|---|", *rows])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Write the table of names; turn a README's links in examples/ into links to pages."""
    markdown = markdown.replace("<!-- table of names -->", table_of_names())
    if not page.file.src_uri.startswith("examples/"):
        return markdown
    return markdown.replace("](../../docs/", "](../../")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Let names such as surprise+confidence break in tables; turn a notebook's links to pages."""
    if not page.file.src_uri.endswith(".ipynb"):
        return _NAME_IN_TABLE.sub(lambda match: match[0].replace("+", "+<wbr>"), html)

    def link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(match[1])
        if target is None:
            _log.warning("%s links to docs/%s, which is not there", page.file.src_uri, match[1])
            return match[0]
        return f'href="{target.url_relative_to(page.file)}'

    return _LINK.sub(link, html)
