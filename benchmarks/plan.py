"""How long observing a large model takes, what memory and disk it needs: arithmetic, not a run.

    python benchmarks/plan.py --model starcoder2-15b --scenarios 10000 --devices 8 --tflops 400

`--tflops` is what one device reaches in matrix products of bfloat16, in 10^12 operations a second.
`python benchmarks/encode.py` on that device prints how many patterns it encodes a second; the
paper's AP-MAE takes 7.5 × 10^9 operations a pattern.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from common import print_table

TOKENS = 256
D_EMBED = {"paper": 1024, "aplens-base": 384}
#: Operations to encode one pattern of 36 patches: two for each weight a token meets.
ENCODE = {"paper": 7.46e9, "aplens-base": 0.102e9}


@dataclass(frozen=True)
class Shape:
    """A model's sizes; `key_values` is the width of all keys together."""

    layers: int
    heads: int
    d_model: int
    key_values: int
    d_mlp: int
    d_vocab: int = 49152

    @property
    def weights(self) -> float:
        """Of the blocks."""
        attention = 2 * self.d_model * (self.d_model + self.key_values)
        return self.layers * (attention + 2 * self.d_model * self.d_mlp)

    @property
    def forward(self) -> float:
        """Operations of one prompt, the last position alone unembedded."""
        attention = 4 * TOKENS**2 * self.d_model * self.layers
        return 2 * self.weights * TOKENS + attention + 2 * self.d_model * self.d_vocab


SHAPES = {
    "starcoder2-3b": Shape(30, 24, 3072, 256, 12288),
    "starcoder2-7b": Shape(32, 36, 4608, 512, 18432),
    "starcoder2-15b": Shape(40, 48, 6144, 512, 24576),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="starcoder2-15b", choices=SHAPES)
    parser.add_argument("--scenarios", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--tflops", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    shape, n = SHAPES[options.model], options.scenarios
    heads, rate = shape.layers * shape.heads, options.tflops * 1e12 * options.devices
    print(
        f"{options.model}: {shape.layers} × {shape.heads} heads, {n} scenarios of {TOKENS} tokens, "
        f"{options.devices} devices of {options.tflops:g} Tflop/s"
    )
    weights = 2 * (shape.weights + 2 * shape.d_model * shape.d_vocab)
    # One layer's scores and probabilities in float32, and its patches while they are encoded.
    patterns = options.batch_size * shape.heads * TOKENS**2 * 4 * 3
    rows = []
    for mae in ENCODE:
        forward, encode = n * shape.forward / rate, n * heads * ENCODE[mae] / rate
        embeddings = n * heads * D_EMBED[mae]
        rows.append(
            [
                mae,
                f"{forward / 60:.1f} + {encode / 60:.1f}",
                f"{(weights + patterns) / 1e9:.0f}",
                f"{embeddings * 2 / 1e9:.1f}",
                f"{n * heads * (36 * 1024 + 4) / 1e9:.0f}",
            ]
        )
    header = [
        "AP-MAE",
        "minutes: forward + encode",
        "GB a device",
        "GB of embeddings",
        "GB of patterns, if kept",
    ]
    print_table(header, rows)


if __name__ == "__main__":
    main()
