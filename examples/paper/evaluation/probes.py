"""Linear probes: what of a pattern an AP-MAE's embedding keeps, beside the pattern's own pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from aplens.heads import Head
from aplens.mae import APMAE
from aplens.patterns import DETECTED, template_scores
from paper.evaluation.embeddings import POOLS, encode_all_pools, select_pools
from paper.evaluation.reconstruction import domain_rows

if TYPE_CHECKING:
    import pandas as pd

    from aplens.intervals import FileBootstrap

LAYER = "layer"

_PENALTIES = np.logspace(-1, 5, 13)
_TEST_SHARE = 0.4
_RAW_SIDE = 16


def downsample(
    scaled: Float[Tensor, "pattern query key"], side: int
) -> Float[Tensor, "pattern lower"]:
    """Patterns averaged down to side × side; the values on and below the diagonal."""
    small = F.adaptive_avg_pool2d(scaled[:, None], side)[:, 0]
    rows, columns = torch.tril_indices(side, side)
    return small[:, rows, columns]


def downsampled_side(n_values: int, n_tokens: int) -> int:
    """The side whose lower triangle has about `n_values` values; at most the pattern's own."""
    return min(max(round(((8 * n_values + 1) ** 0.5 - 1) / 2), 1), n_tokens)


class ProbeSamples:
    """Embeddings, raw downsampled patterns, and what probes are to read off them.

    Args:
        maes: The AP-MAEs by label.
        heads: The model's heads, as the patterns come.
        n_tokens: Tokens in a prompt.
        pools: Which of `POOLS` to probe.
    """

    def __init__(
        self,
        maes: Mapping[str, APMAE],
        heads: Sequence[Head],
        n_tokens: int,
        pools: Sequence[str] = tuple(POOLS),
    ) -> None:
        self._maes = dict(maes)
        self._pools = tuple(pools)
        self._layers = np.array([head.layer for head in heads])
        widths = {mae.embedding_size() for mae in maes.values()}
        sides = {downsampled_side(width, n_tokens) for width in widths}
        self._sides = sorted({min(_RAW_SIDE, n_tokens), *sides})
        self._values: dict[str | int, list[np.ndarray]] = {}
        self._scores: list[np.ndarray] = []
        self._target_layers: list[np.ndarray] = []
        self._files: list[str] = []
        self._domains: list[str] = []

    def see(
        self,
        attention: Float[Tensor, "some query key"],
        scaled: Float[Tensor, "some query key"],
        heads: Int[Tensor, " some"],
        tokens: Int[Tensor, " pos"],
        *,
        file: str,
        domain: str,
    ) -> None:
        """Keep some heads of one more prompt."""
        for label, mae in self._maes.items():
            self._keep(label, encode_all_pools(mae, scaled))
        for side in self._sides:
            self._keep(side, downsample(scaled, side))
        scores = template_scores(attention, tokens)[:, : len(DETECTED)]
        self._scores.append(scores.cpu().numpy())
        self._target_layers.append(self._layers[heads.cpu().numpy()])
        self._files.append(file)
        self._domains.append(domain)

    def _keep(self, name: str | int, values: Tensor) -> None:
        self._values.setdefault(name, []).append(values.cpu().numpy())

    def evaluate(self, seed: int = 0) -> pd.DataFrame:
        """Probe every input; columns as `evaluate_probes`."""
        import pandas as pd

        prompt = np.repeat(np.arange(len(self._scores)), [len(part) for part in self._scores])
        scores, layers = np.concatenate(self._scores), np.concatenate(self._target_layers)
        frames = [
            evaluate_probe(values, scores, layers, prompt, self._files, self._domains, seed).assign(
                input=name
            )
            for name, values in self._inputs()
        ]
        return pd.concat(frames, ignore_index=True)

    def _inputs(self) -> Iterator[tuple[str, Float[np.ndarray, "pattern dim"]]]:
        for name, parts in self._values.items():
            values = np.concatenate(parts)
            if isinstance(name, int):
                yield f"raw pattern, {name} × {name}", values
            else:
                for pool in self._pools:
                    yield f"{name}: {pool}", select_pools(values, POOLS[pool])


def evaluate_probe(
    values: Float[np.ndarray, "pattern dim"],
    scores: Float[np.ndarray, "pattern detected"],
    layers: Int[np.ndarray, " pattern"],
    prompt: Int[np.ndarray, " pattern"],
    files: Sequence[str],
    domains: Sequence[str],
    seed: int = 0,
) -> pd.DataFrame:
    """Probe one kind of input by ridge regression, on source files it was not fitted on.

    The layer is told by regression on one column a layer, the largest prediction wins. Penalties
    come from generalized cross-validation on the training side, one for each target. Tested on are
    40 % of each domain's files.

    Returns:
        One row a domain ("all" for all together) and target: `metric` ("R²" for scores, "accuracy"
        for the layer), `value` with its 95 % interval (resampling source files) `low` and `high`,
        `dims` of the input, and the numbers of patterns and files.
    """
    import pandas as pd

    from aplens.intervals import FileBootstrap

    held_out = _split_files(files, domains, seed)
    train, test = ~held_out[prompt], held_out[prompt]
    names = np.unique(layers)
    targets = np.concatenate([scores, layers[:, None] == names], axis=1)
    predicted = _fit_ridge(values[train], targets[train], values[test])
    n_scores = scores.shape[1]
    predicted_layers = names[predicted[:, n_scores:].argmax(axis=1)]

    rows: list[dict[str, Any]] = []
    for domain, chosen in domain_rows(domains):
        prompts = np.flatnonzero(chosen & held_out)
        inside = np.isin(prompt[test], prompts)
        of_prompt = np.searchsorted(prompts, prompt[test][inside])
        tested_files = [file for file, keep in zip(files, chosen & held_out, strict=True) if keep]
        bootstrap = FileBootstrap(tested_files, seed=seed)
        figures = {
            name: _r_squared(
                scores[test][inside, column], predicted[inside, column], of_prompt, bootstrap
            )
            for column, name in enumerate(DETECTED)
        }
        hits = (predicted_layers == layers[test])[inside]
        figures[LAYER] = bootstrap.ratio(np.bincount(of_prompt, hits), np.bincount(of_prompt))
        for target, (value, low, high) in figures.items():
            rows.append(
                {
                    "domain": domain,
                    "target": target,
                    "metric": "accuracy" if target == LAYER else "R²",
                    "value": value,
                    "low": low,
                    "high": high,
                    "dims": values.shape[1],
                    "n_train": int(train.sum()),
                    "n_patterns": int(inside.sum()),
                    "n_prompts": len(prompts),
                    "n_files": len(set(tested_files)),
                }
            )
    return pd.DataFrame(rows)


def _split_files(
    files: Sequence[str], domains: Sequence[str], seed: int
) -> Bool[np.ndarray, " prompt"]:
    """Which prompts are tested on: those of some of each domain's source files."""
    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    for domain in sorted(set(domains)):
        names = sorted({file for file, of in zip(files, domains, strict=True) if of == domain})
        if len(names) < 2:
            raise ValueError(
                f"probes are tested on other files than they are fitted on: {domain!r} has prompts "
                f"from {len(names)} file, expected 2 or more; evaluate more prompts"
            )
        n_test = min(max(round(_TEST_SHARE * len(names)), 1), len(names) - 1)
        held_out.update(rng.permutation(names)[:n_test].tolist())
    return np.array([file in held_out for file in files])


def _fit_ridge(
    values: Float[np.ndarray, "train dim"],
    targets: Float[np.ndarray, "train target"],
    test: Float[np.ndarray, "test dim"],
) -> Float[np.ndarray, "test target"]:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ridge = RidgeCV(_PENALTIES, alpha_per_target=True)
    return make_pipeline(StandardScaler(), ridge).fit(values, targets).predict(test)


def _r_squared(
    truth: Float[np.ndarray, " pattern"],
    predicted: Float[np.ndarray, " pattern"],
    of_prompt: Int[np.ndarray, " pattern"],
    bootstrap: FileBootstrap,
) -> tuple[float, float, float]:
    """1 - squared error / squared deviation from the mean; NaN where nothing deviates."""
    wrong = np.bincount(of_prompt, (truth - predicted) ** 2)
    spread = np.bincount(of_prompt, (truth - truth.mean()) ** 2)
    value, low, high = bootstrap.ratio(wrong, spread)
    return 1 - value, 1 - high, 1 - low
