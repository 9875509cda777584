"""Draw docs/images/map.png: the page docs/assets/map.html as a browser shows it.

`make docs-map` makes the page first. It needs a Chromium on the PATH.
"""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
SIZE = {"width": 1240, "height": 800}


def main() -> None:
    """Open the page with a head chosen, point at its nearest, and keep what shows."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]
        ).new_page(viewport=SIZE)
        page.goto((FOLDER / "assets" / "map.html").as_uri())
        page.wait_for_selector("#departures")
        page.locator("#scatter path.near").last.hover()
        picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture = picture.quantize(128, dither=Image.Dither.NONE)
    picture.save(FOLDER / "images" / "map.png", optimize=True)


if __name__ == "__main__":
    main()
