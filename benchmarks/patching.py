"""Activation patching: TransformerLens's own passes against ours, which begin at the patched layer.

    python benchmarks/patching.py
    python benchmarks/patching.py --kind bridge --heads 270

Both patch the same heads' outputs into the same corrupted prompts and measure the same metric; the
metrics are compared. Heads are drawn at random, so that they lie in all layers.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
import torch
from common import describe_machine, median_seconds, print_table
from transformer_lens import patching

import aplens
from aplens.circuits.runs import hook_name, run_with_cache
from aplens.heads import draw_heads
from aplens.models import describe_model

PAIRS = [("Mary", "John"), ("Tom", "Lucy"), ("Anna", "Peter"), ("James", "Susan")]


@torch.no_grad()
def patch_from_the_first_layer(
    model: Any, clean: torch.Tensor, corrupted: torch.Tensor, heads: tuple, metric: Any
) -> list[float]:
    """The metric for each head, as `generic_activation_patch` runs it with the model itself."""
    names = {hook_name("z", head.layer) for head in heads}
    cache: Any = run_with_cache(model, clean, names)[1]
    values: Any = patching.generic_activation_patch(
        model,
        corrupted,
        cache,
        metric,
        patching.layer_head_vector_patch_setter,
        "z",
        index_df=pd.DataFrame(heads, columns=["layer", "head"]),
    )
    return values.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="hooked,bridge")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for kind in options.kind.split(","):
        measure(kind, options)


def measure(kind: str, options: argparse.Namespace) -> None:
    model = aplens.load_model("smollm2-135m", kind)  # type: ignore[arg-type]
    text = "When {0} and {1} went to the store, {2} gave a drink to"
    clean, corrupted = (
        aplens.read_prompts(model, [text.format(*pair, pair[who]) for pair in PAIRS]).tokens
        for who in (0, 1)
    )
    right, wrong = ([f" {pair[who]}" for pair in PAIRS] for who in (1, 0))
    metric = aplens.logit_difference(aplens.make_scenarios(model, clean, right, wrong))
    heads = draw_heads(describe_model(model).heads, options.heads, seed=0)
    found: dict[str, list[float]] = {}

    def ours() -> None:
        table = aplens.activation_patch(
            model, clean, corrupted, heads, metric=metric, progress=False
        )
        found["ours"] = table.to_frame()["metric"].tolist()

    def theirs() -> None:
        found["theirs"] = patch_from_the_first_layer(model, clean, corrupted, heads, metric)

    seconds = median_seconds(
        {"every pass from the first layer": theirs, "ours": ours}, options.repeats
    )
    print(f"{kind}, {len(heads)} heads, {clean.numel()} tokens a pass, {describe_machine()}")
    slowest = seconds["every pass from the first layer"]
    rows = [[name, f"{s / len(heads):.3f}", f"{slowest / s:.2f}"] for name, s in seconds.items()]
    print_table(["way", "s a head", "times as fast"], rows)
    most = max(abs(a - b) for a, b in zip(found["ours"], found["theirs"], strict=True))
    print(f"metrics differ by {most:.1e} at most")


if __name__ == "__main__":
    main()
