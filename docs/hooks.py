"""Links between examples and pages: in the repository they lead to files, on the site to pages."""

from __future__ import annotations

import logging
import re
from typing import Any

_LINK = re.compile(r'href="\.\./docs/([^"#]+)')

#: A name below mkdocs, so that a strict build counts its warnings.
_log = logging.getLogger("mkdocs.hooks.aplens")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the links of a README in examples/ to `docs/*.md` into links to those pages."""
    if not page.file.src_uri.startswith("examples/"):
        return markdown
    return markdown.replace("](../../docs/", "](../../")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Turn a notebook's links to `../docs/*.md` into links to those pages."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(match: re.Match[str]) -> str:
        target = files.get_file_from_path(match[1])
        if target is None:
            _log.warning("%s links to docs/%s, which is not there", page.file.src_uri, match[1])
            return match[0]
        return f'href="{target.url_relative_to(page.file)}'

    return _LINK.sub(link, html)
