"""What comparing a model with Hugging Face's costs when it is loaded, as a share of the loading.

    python benchmarks/load.py

Each loading is one of a fresh process, as a user waits for it, imports included; the two kinds take
turns, and a first round that fills the caches is not counted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time
start = time.perf_counter()
import warnings
warnings.simplefilter("ignore")
import aplens
aplens.load_model("smollm2-135m", kind={kind!r}, verify={verify})
print(time.perf_counter() - start)
"""
ROUNDS = 5


def seconds(kind: str, verify: bool) -> float:
    code = CODE.format(kind=kind, verify=verify)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(found.stdout)


def main() -> None:
    from aplens.models.classes import available_kinds

    for kind in available_kinds():
        pairs = [(seconds(kind, True), seconds(kind, False)) for _ in range(ROUNDS + 1)][1:]
        verified, plain = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(with_check / without for with_check, without in pairs)
        print(
            f"{kind}: {verified:.2f} s, without the comparison {plain:.2f} s; "
            f"ratio {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
