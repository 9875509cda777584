"""What the benchmarks share: real scenarios, medians, and tables as Markdown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from aplens.scenarios import (
    Corpus,
    Scenarios,
    find_jdk_source,
    mine_scenarios,
    open_corpus,
    python_standard_library,
)
from aplens.study.corpora import interleave


def real_scenarios(model: Any, n: int, n_tokens: int, per_file: int = 3) -> Scenarios:
    """Completion scenarios from the JDK's sources, or Python's where there is no JDK."""
    source = find_jdk_source()
    corpus: Corpus = (
        open_corpus(source, "java", prefix="java.base/") if source else python_standard_library()
    )
    tasks = ["identifiers", "eol", "closing_bracket", "string_literals", "numeric_literals"]
    found = mine_scenarios(
        model,
        corpus,
        language="java" if source else "python",
        tasks=tasks,
        per_task=-(-n // len(tasks)),
        per_file=per_file,
        context_length=n_tokens,
    )
    tasks_found = np.array(found.tasks)
    return interleave([found.select(tasks_found == task) for task in found.counts()])[:n]


def seconds_of(run: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def median_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each run. They take turns, so that a slow minute of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, run in runs.items():
            times[name] += [seconds_of(run)] * (turn > 0)
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows as a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def describe_machine() -> str:
    """The processor's threads and the number formats it multiplies fast."""
    formats = [
        name
        for name, has in (
            ("AVX-512", torch.cpu._is_avx512_supported()),
            ("AVX-512 bfloat16", torch.cpu._is_avx512_bf16_supported()),
            ("AMX", torch.cpu._is_amx_tile_supported()),
        )
        if has
    ]
    has = ", ".join(formats) or "AVX2"
    return f"{torch.get_num_threads()} threads, {has}, torch {torch.__version__}"
