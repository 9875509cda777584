"""How good an AP-MAE in training is on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aplens._parts import in_parts
from aplens._processes import Processes
from aplens.mae.error import squared_errors
from aplens.mae.identity import fingerprint_heads, retrieval
from aplens.mae.masking import random_masks
from aplens.mae.model import APMAE
from aplens.mae.rounds import sample_patches, seeded, stream_patches
from aplens.mae.settings import TrainingSettings
from aplens.patterns import PatchGrid

_RETRIEVAL_PROMPTS = 8  # on each of which all heads are looked for

# What the seed is used for here; `aplens.mae.training` has the other uses.
_VALIDATION = 4


class Validation:
    """The same held-out patterns under the same masks, whatever predicts them."""

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "prompt pos"],
        grid: PatchGrid,
        mask_ratio: float,
        settings: TrainingSettings,
        processes: Processes,
    ) -> None:
        self.model, self.tokens, self.grid = model, tokens, grid
        self.processes = processes
        self.mask_ratio, self.settings = mask_ratio, settings

    @cached_property
    def _sample(
        self,
    ) -> tuple[Float[Tensor, "pattern patch pixel"], Bool[Tensor, "pattern patch"]]:
        # Collected when first needed: a finished run that is only loaded needs no forward pass.
        settings = self.settings
        generator = seeded(settings.seed, _VALIDATION)
        chosen = torch.randperm(len(self.tokens), generator=generator)
        patches, mine, n = sample_patches(
            self.model,
            self.tokens[chosen[: settings.validation_prompts]],
            self.grid,
            settings.validation_patterns,
            batch_size=settings.model_batch_size,
            generator=generator,
            processes=self.processes,
        )
        mask = random_masks(n, patches.shape[1], self.mask_ratio, generator)[mine]
        return patches, mask.to(patches.device)

    @cached_property
    def _heads(self) -> Float[Tensor, "prompt head patch pixel"]:
        """Every head's patches on a few prompts."""
        generator = seeded(self.settings.seed, _VALIDATION, 1)
        chosen = torch.randperm(len(self.tokens), generator=generator)[:_RETRIEVAL_PROMPTS]
        batch_size = self.settings.model_batch_size
        chunks = stream_patches(self.model, self.tokens[chosen], self.grid, None, batch_size)
        return torch.stack(list(chunks))

    def retrieval(self, mae: APMAE) -> float:
        """Share of heads found by their fingerprint on another held-out prompt."""
        n_tokens, precision = self.tokens.shape[1], self.settings.dtype
        fingerprints = [
            fingerprint_heads(mae, prompt, n_tokens, precision) for prompt in self._heads
        ]
        return retrieval(torch.stack(fingerprints))

    @torch.no_grad()
    def error_of(self, predict: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Mean squared error over masked patches of `predict(patches, mask) -> patches`."""
        patches, mask = self._sample
        inside = self.grid.inside(self.tokens.shape[1], patches.device)
        added = torch.zeros(2, dtype=torch.float64)  # squared errors, and values
        # A process may have none of the prompts.
        for part, part_mask in in_parts(patches, mask) if len(patches) else ():
            predicted = predict(part.float(), part_mask)
            squared = squared_errors(predicted, part.float(), inside)[part_mask].sum()
            count = inside.expand_as(part)[part_mask].sum()
            added += torch.tensor([squared.item(), count.item()])
        squared, count = self.processes.sum(added).tolist()
        return squared / count
