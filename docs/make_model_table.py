"""Writes the tables of families in docs/how-to/your-model.md, for the TransformerLens installed.

`make model-table` runs it on TransformerLens 3 and 4. Each model is small and random; whether a
class computes what Hugging Face's model computes does not depend on its weights.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch
import transformers
from zoo import ZOO, Variant, save

import aplens
from aplens.models import UnsupportedModelError
from aplens.models.agreement import Difference, difference, run_original
from aplens.models.writing import require_acting

PAGE = ROOT / "docs" / "how-to" / "your-model.md"
HEADER = ("family", "class", "patterns differ by", "logits differ by", "remarks")
NAMES = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}


def rows() -> Iterator[tuple[str, ...]]:
    """A row for each class of each variant, but for classes that do not know the family."""
    hooked = aplens.models.classes.available_kinds()[0] == "hooked"
    for name, variant in ZOO.items():
        found = [row(name, variant, kind) for kind in ("hooked", "bridge")[not hooked :]]
        usable = [each for each in found if each[1] != "none"]
        yield from usable or found[-1:]


def row(name: str, variant: Variant, kind: str) -> tuple[str, ...]:
    """What one class makes of one variant."""
    with tempfile.TemporaryDirectory() as folder:
        save(variant, Path(folder))
        try:
            model = aplens.load_model(folder, kind=kind, verify=False)
        except UnsupportedModelError as error:
            return (name, "none", "", "", f"refused: {reason(error, folder)}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            original = run_original(
                transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, attn_implementation="eager"
                )
            )
        found = difference(model, original)
        remarks = []
        try:
            aplens.load_model(folder, kind=kind)
        except UnsupportedModelError as error:
            ignored = re.search(r"\(it ignores (.*)\)$", str(error))
            remarks = ["refused" + (f": ignores `{ignored[1]}`" if ignored else "")]
        try:
            require_acting(model, "pattern", range(model.cfg.n_layers))
        except UnsupportedModelError:
            remarks.append("edits of patterns refused: hooks there only read")
    return (name, NAMES[kind], *numbers(found), "; ".join(remarks))


def reason(error: Exception, folder: str) -> str:
    """An error without the folder's name, and short."""
    text = str(error).removeprefix(f"{folder}: ").replace(Path(folder).name, "it")
    return text.partition(" Available architectures")[0].strip()


def numbers(found: Difference) -> tuple[str, str]:
    """Differences to one digit; rounding, which differs between processors, as such."""
    values = (found.patterns, found.logits)
    return tuple("< 1e-5" if value < 1e-5 else f"{value:.1g}" for value in values)


def main() -> None:
    """Replace the table between this version's marks."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    major = version("transformer-lens").partition(".")[0]
    lines = (HEADER, ["---"] * len(HEADER), *rows())
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
    start, end = f"<!-- TransformerLens {major} -->", f"<!-- end of {major} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(start)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{PAGE} lacks the marks {start} and {end}")
    PAGE.write_text(f"{before}{start}\n\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
