"""The command `aplens map`: models one after the other, on a file's prompts or on passages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from aplens.correctness.clusters import Reducer, require_reducer
from aplens.mae import APMAE
from aplens.models import load_model
from aplens.prompts import read_prompts
from aplens.scenarios import prose_and_code
from aplens.scenarios.prompt_files import read_columns
from aplens.study.stages import Reporter
from aplens.views import HeadMap, map_heads

#: Passages that are taken where no prompts are given, and characters a token, nearly always fewer.
N_PASSAGES, _CHARACTERS = 48, 8


def map_models(
    models: Sequence[str],
    prompts: Path | None,
    output: Path,
    *,
    mae: str = "aplens-short",
    reducer: Reducer = "pca",
    reporter: Reporter | None = None,
) -> HeadMap:
    """Map the heads of models that `load_model` knows, and write the page.

    One model after the other is loaded and let go, so that they need not fit into memory together.
    The file of prompts is one that `aplens.scenarios.read_prompt_file` reads; its answers, if it
    has any, count for nothing here. Without prompts, 24 passages of English prose and 24 of Python
    are taken (`aplens.scenarios.prose_and_code`), as long as the AP-MAE's context.
    """
    reporter = reporter or Reporter()
    repeated = sorted({name for name in models if models.count(name) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is named twice")
    require_reducer(reducer)
    reader = APMAE.from_pretrained(mae)
    n_ctx = reader.config.n_ctx
    texts = (
        read_columns(prompts)["prompt"]
        if prompts
        else prose_and_code(N_PASSAGES, _CHARACTERS * n_ctx)
    )
    started, total = time.monotonic(), len(models) * len(texts)
    reporter.start("map", f"{len(models)} models on {len(texts)} prompts, {mae}")
    maps = []
    for number, name in enumerate(models):
        reporter.say(name)
        model = load_model(name)
        read = read_prompts(model, texts)
        if prompts and read.n_tokens > n_ctx:
            reporter.say(f"of longer prompts the first {n_ctx} tokens are taken")
        cut = read.first_tokens(n_ctx)

        def tell(done: int, _: int, before: int = number * len(texts)) -> None:
            reporter.update(before + done, total)

        maps.append(map_heads({name: model}, cut, mae=reader, progress=tell))
        del model
    joined = HeadMap.join(maps)
    (joined if output.suffix == ".safetensors" else joined.show(reducer)).save(output)
    reporter.finish("map", time.monotonic() - started, [output])
    return joined
