"""How well AP-MAEs fill in hidden patches of a model's patterns, beside what needs no AP-MAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

from aplens.heads import Head
from aplens.mae import (
    APMAE,
    additive_fit,
    hidden_errors,
    low_rank_fit,
    random_masks,
    seeded,
)
from aplens.patterns import PatchGrid
from aplens.scenarios import Scenarios
from paper.evaluation.gaussian import choose_gaussian
from paper.evaluation.nearest import nearest_visible
from paper.evaluation.prompts import stream_prompts

if TYPE_CHECKING:
    import pandas as pd

MEAN_PATCH = "mean patch"
BASELINES = (
    MEAN_PATCH,
    "head's mean",
    "nearest visible patch",
    "linear regression",
    "additive fit",
    "low-rank fit",
)
LAYER_THIRDS = ("early third", "middle third", "late third")
ALL = "all"

#: Patterns that the linear regression is fitted on and chosen by (a fifth of them).
REFERENCE_PATTERNS = 2048

# Streams of randomness.
_REFERENCE, _VALIDATION, _MASKS = range(3)

Predictor: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ReferencePatterns:
    """What baselines learn from, taken from prompts whose files are in no measurement.

    Attributes:
        head_means: Each head's mean log-normalized pattern.
        sample: Some of the patterns, prompt after prompt.
    """

    head_means: Float[Tensor, "head query key"]
    sample: Float16[Tensor, "pattern query key"]

    @property
    def n_tokens(self) -> int:
        """Tokens in a prompt."""
        return self.head_means.shape[-1]

    @classmethod
    def collect(
        cls,
        model: Any,
        prompts: Scenarios,
        n_patterns: int = REFERENCE_PATTERNS,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> ReferencePatterns:
        """Run prompts; every one gives about as many of the `n_patterns` patterns."""
        each = -(-n_patterns // len(prompts))
        generator = seeded(seed, _REFERENCE)
        total: Tensor | None = None
        sample = []
        for seen in stream_prompts(model, prompts.tokens()):
            total = seen.scaled.clone() if total is None else total + seen.scaled
            chosen = torch.randperm(len(seen.scaled), generator=generator)[:each]
            sample.append(seen.scaled[chosen].half())
            if progress is not None:
                progress(seen.place + 1, len(prompts))
        assert total is not None  # tokens() refuses no prompts at all
        return cls(total / len(prompts), torch.cat(sample)[:n_patterns])


class _Setting(NamedTuple):
    """One way to cut and to hide, with everything that predicts what was hidden."""

    grid: PatchGrid
    mask_ratio: float
    predictors: dict[str, Predictor]


class ReconstructionErrors:
    """Squared errors on hidden patches, of AP-MAEs and baselines on the same patterns and masks.

    AP-MAEs of one patch size and mask ratio share their masks and one set of baselines:
    the mean patch of every position; the mean pattern of that head; the nearest visible patch; the
    linear regression on the visible pixels (`GaussianRegression`); the additive and the low-rank
    fit of each pattern on its own.

    Args:
        maes: The AP-MAEs by label.
        reference: What the baselines learn from.
        heads: The model's heads, as the patterns come.
        mask_ratio: Share of the patches to hide (default: each AP-MAE's own).
        mask_seeds: One mask a pattern for each.
    """

    def __init__(
        self,
        maes: Mapping[str, APMAE],
        reference: ReferencePatterns,
        heads: Sequence[Head],
        *,
        mask_ratio: float | None = None,
        mask_seeds: Sequence[int] = (0, 1, 2),
    ) -> None:
        require_room(maes, reference.n_tokens)
        self._settings = _make_settings(maes, reference, mask_ratio)
        self._n_tokens = reference.n_tokens
        self._layers = np.array([head.layer for head in heads])
        self._seeds = tuple(mask_seeds)
        self._n_layers = int(self._layers.max()) + 1
        self._sums: dict[tuple[int, str], list[Float[np.ndarray, "seed layer"]]] = {}
        self._counts: list[Int[np.ndarray, " layer"]] = []

    @torch.no_grad()
    def see(
        self, index: int, scaled: Float[Tensor, "some query key"], heads: Int[Tensor, " some"]
    ) -> None:
        """Measure some heads of one more prompt.

        Args:
            index: The prompt's number, which decides its masks.
            scaled: Log-normalized patterns.
            heads: Their places among all heads.
        """
        layers = self._layers[heads.cpu().numpy()]
        self._counts.append(np.bincount(layers, minlength=self._n_layers))
        for number, setting in enumerate(self._settings):
            patches = setting.grid.patchify(scaled)
            inside = setting.grid.inside(self._n_tokens, patches.device)
            by_seed: dict[str, list[np.ndarray]] = {name: [] for name in setting.predictors}
            for seed in self._seeds:
                generator = seeded(seed, _MASKS, index)
                mask = random_masks(len(patches), patches.shape[1], setting.mask_ratio, generator)
                mask = mask.to(patches.device)
                for name, predict in setting.predictors.items():
                    error = hidden_errors(predict(patches, mask, heads), patches, mask, inside)
                    by_seed[name].append(
                        np.bincount(layers, error.double().cpu().numpy(), self._n_layers)
                    )
            for name, rows in by_seed.items():
                self._sums.setdefault((number, name), []).append(np.stack(rows))

    def summarize(self, prompts: Scenarios, seed: int = 0) -> pd.DataFrame:
        """Errors by domain and by layer, with 95 % intervals that resample source files.

        Returns:
            One row a predictor, patch size, mask ratio, domain ("all" for all together) and group
            of layers ("all", each third, "L0" and so on): the mean `error` in squared
            log-normalized units with `low` and `high`; `seed_spread`, its standard deviation over
            mask seeds; `ratio`, the error divided by the mean patch's, with `ratio_low` and
            `ratio_high`; and how many patterns, prompts and files it is over.
        """
        import pandas as pd

        counts = np.stack(self._counts)
        files = np.array(prompts.files, dtype=object)
        rows = []
        for domain, chosen in domain_rows(prompts.languages):
            for group, layers in _layer_groups(self._n_layers):
                place = {"domain": domain, "layers": group}
                sizes = counts[chosen][:, layers].sum(1)
                if not sizes.any():
                    continue  # a model of two layers has no middle third
                for row in self._compare(chosen, layers, files[chosen], sizes, seed):
                    rows.append(row | place | _count(sizes, files[chosen]))
        return pd.DataFrame(rows)

    def _compare(
        self,
        chosen: Bool[np.ndarray, " prompt"],
        layers: slice,
        files: np.ndarray,
        sizes: Int[np.ndarray, " chosen"],
        seed: int,
    ) -> Iterator[dict[str, Any]]:
        """Every predictor's figures on some prompts and layers."""
        from aplens.intervals import FileBootstrap

        bootstrap = FileBootstrap(list(files), seed=seed)
        sums = {
            key: np.stack(parts)[chosen][:, :, layers].sum(2) for key, parts in self._sums.items()
        }
        for (number, name), by_seed in sums.items():
            setting = self._settings[number]
            mean_patch = sums[number, MEAN_PATCH].mean(1)
            error = bootstrap.ratio(by_seed.mean(1), sizes)
            ratio = bootstrap.ratio(by_seed.mean(1), mean_patch)
            per_seed = by_seed.sum(0) / max(sizes.sum(), 1)
            yield {
                "predictor": name,
                "patch_size": setting.grid.patch_size,
                "mask_ratio": setting.mask_ratio,
                "error": error.value,
                "low": error.low,
                "high": error.high,
                "seed_spread": per_seed.std(ddof=1) if len(per_seed) > 1 else np.nan,
                **ratio.columns("ratio"),
                "n_seeds": len(per_seed),
            }


def require_room(maes: Mapping[str, APMAE], n_tokens: int) -> None:
    """Refuse AP-MAEs made for shorter prompts."""
    for label, mae in maes.items():
        if mae.config.n_ctx < n_tokens:
            raise ValueError(
                f"the AP-MAE {label} takes prompts of up to {mae.config.n_ctx} tokens, these have "
                f"{n_tokens}: evaluate it on a study of a shorter context_length"
            )


def _make_settings(
    maes: Mapping[str, APMAE], reference: ReferencePatterns, mask_ratio: float | None
) -> list[_Setting]:
    groups: dict[tuple[int, float], dict[str, Predictor]] = {}
    for label, mae in maes.items():
        key = mae.config.patch_size, mask_ratio or mae.config.mask_ratio
        groups.setdefault(key, {})[label] = partial(_fill_in, mae, reference.n_tokens)
    settings = []
    for (patch_size, ratio), predictors in groups.items():
        n_rows = -(-reference.n_tokens // patch_size)
        grid = PatchGrid(n_rows * patch_size, patch_size)
        settings.append(_Setting(grid, ratio, predictors | _baselines(reference, grid, ratio)))
    return settings


def _fill_in(mae: APMAE, n_tokens: int, patches: Tensor, mask: Tensor, heads: Tensor) -> Tensor:
    return mae.fill_in(patches, mask, n_tokens=n_tokens)


def _baselines(
    reference: ReferencePatterns, grid: PatchGrid, mask_ratio: float
) -> dict[str, Predictor]:
    head_means = grid.patchify(reference.head_means)
    mean = head_means.mean(0)
    patches = grid.patchify(reference.sample.float())
    fit, validation = patches.tensor_split([max(1, len(patches) * 4 // 5)])
    n, k = validation.shape[:2]
    mask = random_masks(n, k, mask_ratio, seeded(_VALIDATION))
    linear = choose_gaussian(fit, validation, mask.to(validation.device))
    predictors: tuple[Predictor, ...] = (
        lambda patches, mask, heads: mean.expand_as(patches),
        lambda patches, mask, heads: head_means[heads],
        lambda patches, mask, heads: nearest_visible(patches, mask, grid),
        lambda patches, mask, heads: linear.predict(patches, mask),
        lambda patches, mask, heads: additive_fit(patches, mask, mean, grid),
        lambda patches, mask, heads: low_rank_fit(patches, mask, mean, grid),
    )
    return dict(zip(BASELINES, predictors, strict=True))


def domain_rows(domains: Sequence[str]) -> Iterable[tuple[str, Bool[np.ndarray, " prompt"]]]:
    """All prompts, then those of each domain."""
    names = np.array(domains, dtype=object)
    yield ALL, np.ones(len(names), dtype=bool)
    for domain in sorted(set(domains)):
        yield domain, names == domain


def _layer_groups(n_layers: int) -> Iterable[tuple[str, slice]]:
    yield ALL, slice(None)
    edges = np.linspace(0, n_layers, len(LAYER_THIRDS) + 1).round().astype(int)
    for third, start, stop in zip(LAYER_THIRDS, edges[:-1], edges[1:], strict=True):
        yield third, slice(int(start), int(stop))
    for layer in range(n_layers):
        yield f"L{layer}", slice(layer, layer + 1)


def _count(sizes: Int[np.ndarray, " prompt"], files: np.ndarray) -> dict[str, int]:
    seen = sizes > 0
    return {
        "n_patterns": int(sizes.sum()),
        "n_prompts": int(seen.sum()),
        "n_files": len(set(files[seen])),
    }
