"""AP-MAE: a masked autoencoder over the patches of log-normalized attention patterns."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aplens._documents import require_choice
from aplens._parts import in_parts
from aplens.mae.additive import additive_fit
from aplens.mae.config import APMAEConfig
from aplens.mae.habit import fill_in_queries, to_attention
from aplens.mae.layers import Decoder, Encoder, take
from aplens.mae.low_rank import low_rank_fit
from aplens.mae.masking import random_masks
from aplens.mae.precision import autocast
from aplens.mae.pretrained import load_weights, read_pretrained, save_pretrained
from aplens.mae.summary import Summary
from aplens.patterns import AttentionPatterns, PatchGrid, log_normalize, smallest_log
from aplens.patterns.collect import as_patterns
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformer_lens import ActivationCache

Pool: TypeAlias = Literal["cls", "mean", "last_query"]
PatchSet: TypeAlias = Literal["lower", "all"]
Patterns: TypeAlias = "AttentionPatterns | ActivationCache | Float[Tensor, '*pattern query key']"

#: What stands for a pattern unless told otherwise: CLS, which tells the most, and the row of the
#: position that predicts, which adds to it (docs/results/reconstruction.md).
DEFAULT_POOL: tuple[Pool, ...] = ("cls", "last_query")

#: What a fingerprint is read from.
FINGERPRINT_POOL: tuple[Pool, ...] = ("cls", "last_query", "mean")

# Log-normalized values stray from their mean by about 0.1. What the network reads of that is
# brought to the size of its other inputs, or its first layers learn several times slower.
_DEVIATION = 0.1


class APMAEOutput(NamedTuple):
    """One masked pass.

    Attributes:
        loss: Mean squared error over the pixels of the hidden patches, in log-normalized units.
        predicted: The hidden patches as the decoder predicts them, in row-major order.
        mask: True where a patch was hidden.
        summary_loss: Mean squared error of what CLS tells of the whole pattern, in the same units;
            0 when the configuration asks nothing of CLS.
        fingerprint: What the visible patches alone give as a fingerprint; None when the
            configuration has none.
    """

    loss: Float[Tensor, ""]
    predicted: Float[Tensor, "pattern masked pixel"]
    mask: Bool[Tensor, "pattern patch"]
    summary_loss: Float[Tensor, ""]
    fingerprint: Float[Tensor, "pattern d"] | None


class _Prompt(NamedTuple):
    """What prompts of one length have in common.

    `inside` is 0 in the padding of the last patches and 1 elsewhere; `mean` is the mean patch of
    every position, 0 in the padding, and everywhere when the model holds none.
    """

    n_tokens: int
    n_rows: int
    inside: Float[Tensor, "patch pixel"]
    mean: Float[Tensor, "patch pixel"]


@dataclass(frozen=True, repr=False)
class Reconstruction(Shown):
    """Patterns, what was hidden of them, and what AP-MAE made of it, in log-normalized units.

    Attributes:
        original: The log-normalized patterns.
        masked: The same, NaN where hidden.
        reconstructed: The same, with the decoder's prediction where hidden.
        mask: True where a patch was hidden, over the lower-triangular patches in row-major order.
        error: Mean squared error over each pattern's hidden values.
    """

    original: Float[Tensor, "*pattern query key"]
    masked: Float[Tensor, "*pattern query key"]
    reconstructed: Float[Tensor, "*pattern query key"]
    mask: Bool[Tensor, "*pattern patch"]
    error: Float[Tensor, "*pattern"]

    def __repr__(self) -> str:
        n_tokens, hidden = self.original.shape[-1], self.mask.float().mean()
        return (
            f"Reconstruction({self.error.numel()} patterns of {n_tokens} tokens, {hidden:.0%} of "
            f"the patches hidden, mean squared error {self.error.float().mean():.4f})"
        )

    def _shown_rows(self) -> pd.DataFrame:
        return self.to_frame()

    def to_frame(self) -> pd.DataFrame:
        """One row a pattern: its place among the patterns, and its `error`."""
        import pandas as pd

        places = [", ".join(map(str, place)) for place in np.ndindex(tuple(self.error.shape))]
        return pd.DataFrame({"pattern": places, "error": self.error.flatten().tolist()})

    def plot(self, labels: Sequence[object] | None = None) -> Figure:
        """Original, masked and reconstructed patterns side by side, one row a pattern.

        Args:
            labels: A name for each pattern, such as its head: `labels=patterns.heads` for one
                prompt (default: their places).

        Raises:
            ValueError: When there are more than 24 patterns, or not as many labels as patterns.
        """
        from aplens.plots import plot_reconstruction

        return plot_reconstruction(self, labels)


class APMAE(nn.Module):
    """A masked autoencoder over attention patterns (docs/method.md, steps 3 to 5 and 7).

    Patches are the lower-triangular ones in row-major order, so that those of a shorter prompt are
    the first ones of a longer prompt's. Hence prompts of any length up to `config.n_ctx` work: a
    partial last patch is padded with zeros, nothing is ever resized. Longer patterns are refused;
    `AttentionPatterns.crop` cuts them to what the first tokens of the prompt alone would give.

    Args:
        config: Sizes and choices.
        seed: Of the initial weights; the global random state stays untouched.

    Attributes:
        grid: How patterns are cut into patches.
        mean_patches: The mean patch of every position in the training patterns, when the
            configuration uses it; zero until training sets it.
        depth_scales: What turns that mean into the mean of shorter prompts
            (`aplens.patterns.depth_scales`), one factor for every length up to `n_ctx`.
        to_fingerprint: The linear layer from an embedding pooled as `FINGERPRINT_POOL` to a
            fingerprint before it is scaled to length 1; zero until it is fitted or trained, None
            when the configuration has none.
    """

    def __init__(self, config: APMAEConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.grid = PatchGrid(config.n_ctx, config.patch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(config)
            self.decoder = Decoder(config)
            self.summary = Summary(config) if config.summary_weight else None
            self.to_fingerprint = make_fingerprint_layer(config)
        self.mean_patches: Float[Tensor, "patch pixel"] | None
        mean = torch.zeros(self.grid.n_patches, self.grid.n_pixels) if config.needs_mean else None
        self.register_buffer("mean_patches", mean)
        self.depth_scales: Float[Tensor, " length"] | None
        scales = torch.ones(config.n_ctx) if config.needs_mean else None
        self.register_buffer("depth_scales", scales)
        self._lower_places: Int[Tensor, " patch"]
        self.register_buffer(
            "_lower_places", self.grid.rows * self.grid.n_rows + self.grid.columns, persistent=False
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.cls_token.device

    def embedding_size(self, pool: Pool | Sequence[Pool] = DEFAULT_POOL) -> int:
        """Width of an embedding pooled this way.

        Raises:
            ValueError: When a pool is unknown.
        """
        return self.config.encoder_dim * len(_read_pool(pool))

    def mean_pattern(self, n_tokens: int) -> Float[Tensor, "patch pixel"] | None:
        """The mean of the training patterns for prompts of this length, log-normalized.

        None when this AP-MAE holds none.

        Raises:
            ValueError: When a prompt of `n_tokens` does not fit.
        """
        if self.mean_patches is None:
            return None
        return self._mean(self.grid.n_patches_for(n_tokens), n_tokens)

    def forward(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        *,
        n_tokens: int | None = None,
        precision: torch.dtype | None = None,
    ) -> APMAEOutput:
        """Hide some patches, encode the others, predict the hidden ones.

        Args:
            scaled: Log-normalized lower-triangular patches.
            mask: True where a patch is hidden, the same number in each pattern, such as
                `aplens.mae.random_masks` draws. Hidden patches are compared with, never read.
            n_tokens: Tokens in the prompt (default: as many as the patches hold); tells the padding
                of a partial last patch from attention.
            precision: float32 or bfloat16 (default: what the device is good at).

        Raises:
            ValueError: When shapes disagree, or masks hide different numbers of patches.
        """
        k = self._check_patches(scaled)
        prompt = self._prompt(k, n_tokens)
        predicted, encoded, visible, masked = self._predict(scaled, mask, prompt, precision)
        squared = (predicted - take(scaled, masked)).square()
        return APMAEOutput(
            loss=squared.sum() / prompt.inside[masked].sum(),
            predicted=predicted,
            mask=mask.to(scaled.device),
            summary_loss=self._summary_loss(encoded[:, 0], scaled, prompt),
            fingerprint=self._masked_fingerprint(encoded, visible >= k - prompt.n_rows),
        )

    def _predict(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        prompt: _Prompt,
        precision: torch.dtype | None,
    ) -> tuple[
        Float[Tensor, "pattern masked pixel"],
        Float[Tensor, "pattern 1+visible dim"],
        Int[Tensor, "pattern visible"],
        Int[Tensor, "pattern masked"],
    ]:
        """What the decoder makes of hidden patches, and the encoded visible ones.

        And which patches of each pattern are visible and which are masked, both in rising order.
        """
        _check_mask(mask, tuple(scaled.shape[:2]))
        mask, k = mask.to(scaled.device), mask.shape[1]
        n_visible = k - int(mask[0].sum())
        order = mask.int().argsort(dim=1, stable=True)
        visible, masked = order.tensor_split([n_visible], dim=1)
        fit = self._fit(scaled, mask, prompt)
        clues = None if fit is None else self._clues(scaled, mask, fit, prompt)
        inputs = self._encoder_input(scaled, prompt)
        clues = None if clues is None else clues.to(inputs.dtype)
        with autocast(scaled.device, precision):
            places = self._lower_places
            encoded = self.encoder(take(inputs, visible), places[visible])
            if self.config.decoder_context == "tokens":
                residual = self.decoder.from_tokens(encoded, visible, masked, places[:k], clues)
            else:
                residual = self.decoder.from_cls(encoded, places[visible], places[masked])
        predicted = residual.float() if fit is None else take(fit, masked) + residual.float()
        predicted = predicted * F.embedding(masked, prompt.inside)
        return predicted, encoded, visible, masked

    def _masked_fingerprint(
        self,
        encoded: Float[Tensor, "pattern 1+visible dim"],
        in_last_row: Bool[Tensor, "pattern visible"],
    ) -> Float[Tensor, "pattern d"] | None:
        if self.to_fingerprint is None:
            return None
        share = in_last_row / in_last_row.sum(1, keepdim=True).clamp(min=1)  # all may be hidden
        last_query = (encoded[:, 1:] * share[..., None]).sum(1)
        pooled = [encoded[:, 0], last_query, encoded.mean(dim=1)]  # as FINGERPRINT_POOL
        return self.read_fingerprint(torch.cat([part.float() for part in pooled], dim=-1))

    def _prompt(self, n_patches: int, n_tokens: int | None) -> _Prompt:
        """What is known of prompts of this length."""
        n_rows = self.grid.n_rows_of(n_patches)
        n_tokens = n_rows * self.grid.patch_size if n_tokens is None else n_tokens
        if self.grid.n_rows_for(n_tokens) != n_rows:
            raise ValueError(
                f"{n_patches} patches of {self.grid.patch_size} are not those of {n_tokens} tokens"
            )
        inside = self.grid.inside(n_tokens, self.device)
        return _Prompt(n_tokens, n_rows, inside, self._mean(n_patches, n_tokens))

    def _mean(self, n_patches: int, n_tokens: int) -> Float[Tensor, "patch pixel"]:
        """The mean patches of prompts of this length."""
        causal = self.grid.causal(n_tokens, self.device)
        if self.mean_patches is None or self.depth_scales is None:
            return torch.zeros_like(causal)
        depth = (1 - self.mean_patches[:n_patches]) * self.depth_scales[n_tokens - 1]
        return (1 - depth) * causal

    @torch.no_grad()  # the fit holds nothing to learn
    def _fit(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        prompt: _Prompt,
    ) -> Float[Tensor, "pattern patch pixel"] | None:
        """What the visible patches alone say of every patch."""
        if self.config.base == "none":
            return None
        fit = additive_fit if self.config.base == "additive" else low_rank_fit
        return fit(scaled, mask, prompt.mean, self.grid)

    def _clues(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        fit: Float[Tensor, "pattern patch pixel"],
        prompt: _Prompt,
    ) -> Float[Tensor, "pattern patch pixel"]:
        """What the decoder reads of the fit: its prediction where hidden, its error where not."""
        clues = torch.where(mask[..., None], fit - prompt.mean, scaled - fit)
        return clues.mul_(prompt.inside).div_(_DEVIATION)

    def _encoder_input(
        self, scaled: Float[Tensor, "pattern patch pixel"], prompt: _Prompt
    ) -> Float[Tensor, "pattern patch pixel"]:
        centred = self.config.patch_input == "centred"
        inputs = (scaled - prompt.mean).div_(_DEVIATION) if centred else scaled
        return inputs.to(self.encoder.cls_token.dtype)

    def _summary_loss(
        self,
        cls_token: Float[Tensor, "pattern dim"],
        scaled: Float[Tensor, "pattern patch pixel"],
        prompt: _Prompt,
    ) -> Float[Tensor, ""]:
        if self.summary is None:
            return scaled.new_zeros(())
        deviation = (scaled - prompt.mean).div_(_DEVIATION)
        last = (prompt.n_tokens - 1) % self.grid.patch_size
        loss = self.summary.loss(cls_token.float(), deviation, prompt.n_rows, last_row=last)
        return loss * _DEVIATION**2

    @torch.no_grad()
    def reconstruct(
        self,
        patterns: Patterns,
        mask_ratio: float | None = None,
        seed: int = 0,
    ) -> Reconstruction:
        """Hide random patches of patterns and fill them in.

        Args:
            patterns: `AttentionPatterns` of prompts of one length, or attention probabilities
                `[..., query, key]`, of up to `n_ctx` tokens. They are log-normalized here.
            mask_ratio: Share of the patches to hide (default: the configuration's).
            seed: Of the masks.

        Raises:
            ValueError: When patterns are not square, too long, no probabilities, or no longer than
                one patch.
        """
        attention, leading = self._read_patterns(patterns)
        n_tokens = attention.shape[-1]
        scaled = log_normalize(self.grid.patchify(attention))
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        generator = torch.Generator().manual_seed(seed)
        mask = random_masks(len(scaled), scaled.shape[1], ratio, generator).to(self.device)

        filled = self.fill_in(scaled, mask, n_tokens=n_tokens)
        hidden = scaled.masked_fill(mask[..., None], torch.nan)
        original, masked, reconstructed = (
            self.grid.unpatchify(patches, n_tokens) for patches in (scaled, hidden, filled)
        )
        # Counted over what is hidden of the pattern itself: a partial last patch is padding beyond.
        squared = (reconstructed - original).square().where(masked.isnan(), torch.nan)
        return Reconstruction(
            original=original.reshape(*leading, n_tokens, n_tokens),
            masked=masked.reshape(*leading, n_tokens, n_tokens),
            reconstructed=reconstructed.reshape(*leading, n_tokens, n_tokens),
            mask=mask.reshape(*leading, -1),
            error=squared.nanmean((-2, -1)).reshape(leading),
        )

    @torch.no_grad()
    def predict_hidden(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        *,
        n_tokens: int | None = None,
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, "pattern masked pixel"]:
        """The prediction for hidden patches, in their order, log-normalized.

        Args:
            scaled: Log-normalized lower-triangular patches. Hidden ones are never read.
            mask: True where a patch is hidden, the same number in each pattern.
            n_tokens: Tokens in the prompt (default: as many as the patches hold).
            precision: float32 or bfloat16 (default: what the device is good at).

        Raises:
            ValueError: When shapes disagree, or masks hide different numbers of patches.
        """
        prompt = self._prompt(self._check_patches(scaled), n_tokens)
        predicted = [
            self._predict(part, hidden, prompt, precision)[0]
            for part, hidden in in_parts(scaled, mask)
        ]
        return torch.cat(predicted)

    @torch.no_grad()
    def fill_in(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        mask: Bool[Tensor, "pattern patch"],
        *,
        n_tokens: int | None = None,
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, "pattern patch pixel"]:
        """Log-normalized patches with the hidden ones replaced by the prediction.

        It takes and raises what `predict_hidden` does.
        """
        predicted = self.predict_hidden(scaled, mask, n_tokens=n_tokens, precision=precision)
        return scaled.masked_scatter(mask.to(scaled.device)[..., None], predicted)

    @torch.no_grad()
    def expect(
        self,
        patterns: Patterns,
        n_queries: int | None = 1,
        *,
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, "*pattern query key"]:
        """Each head's habit: the attention that the rest of its pattern lets AP-MAE expect.

        The patches of one row of the grid are hidden and filled in from all other rows. The
        difference between a query's attention and its habit is what the head does of its own on
        this prompt.

        Args:
            patterns: `AttentionPatterns` of prompts of one length, or attention probabilities
                `[..., query, key]`, longer than one patch and of up to `n_ctx` tokens.
            n_queries: The expected attention of so many of the last queries; None: of all, which
                hides one grid row after the other.
            precision: float32 or bfloat16 (default: what the device is good at).

        Returns:
            Attention probabilities, `[..., n_queries, key]`; each query's sum to 1, and a later key
            has none. In float32 on the model's device.

        Raises:
            ValueError: When patterns are not square, too long, too short or no probabilities, or
                `n_queries` is not from 1 to the prompt's length.
        """
        attention, leading = self._read_patterns(patterns)
        n_tokens = attention.shape[-1]
        n_queries = n_tokens if n_queries is None else n_queries
        if not 1 <= n_queries <= n_tokens:
            raise ValueError(f"n_queries must be 1 to {n_tokens}, got {n_queries}")
        expected = []
        for (part,) in in_parts(attention):
            patches = self.grid.patchify(part)
            smallest = smallest_log(patches)
            scaled = log_normalize(patches, smallest)
            filled = fill_in_queries(self, scaled, n_tokens, n_queries, precision)
            expected.append(to_attention(filled, smallest))
        return torch.cat(expected).reshape(*leading, n_queries, n_tokens)

    @torch.no_grad()
    def encode(
        self,
        patterns: Patterns,
        patches: PatchSet = "lower",
        pool: Pool | Sequence[Pool] = DEFAULT_POOL,
        *,
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, "*pattern d_embed"]:
        """Embed patterns, nothing hidden (docs/method.md, step 7).

        Args:
            patterns: `AttentionPatterns`, of prompts of any lengths; what `run_with_cache` kept; or
                attention probabilities `[..., query, key]`. Of up to `n_ctx` tokens. They are
                log-normalized here.
            patches: "lower": the patches on or below the diagonal, as in training. "all": the whole
                grid, as the released code does; what lies above the diagonal then takes part in
                attention, but never in a mean.
            pool: "cls": the CLS token. "mean": the mean over CLS and the lower-triangular patches.
                "last_query": the mean over the patches of the last grid row, that of the position
                that predicts. Several are concatenated.
            precision: float32 or bfloat16 (default: what the device is good at).

        Returns:
            One embedding a pattern, `[batch, head, d_embed]` for `AttentionPatterns`, in float32 on
            the model's device.

        Raises:
            ValueError: When patterns are not square, too long or no probabilities, or `patches` or
                `pool` is unknown.
        """
        patterns = as_patterns(patterns)
        if isinstance(patterns, AttentionPatterns) and len(patterns.lengths.unique()) > 1:
            shape = (*patterns.values.shape[:2], self.embedding_size(pool))
            by_prompt = torch.empty(shape, device=self.device)
            for rows, alike in patterns.by_length():
                by_prompt[rows] = self.encode(alike, patches, pool, precision=precision)
            return by_prompt
        attention, leading = self._read_patterns(patterns)
        n_tokens = attention.shape[-1]
        embeddings = [
            self.encode_patches(
                log_normalize(self.grid.patchify(part)),
                patches,
                pool,
                n_tokens=n_tokens,
                precision=precision,
            )
            for (part,) in in_parts(attention)
        ]
        return torch.cat(embeddings).reshape(*leading, self.embedding_size(pool))

    @torch.no_grad()
    def fingerprint(
        self,
        patterns: Patterns,
        *,
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, "*pattern d"]:
        """What tells heads apart: the same head is alike on other prompts, and in other models.

        Compare fingerprints by cosine, which is their product. The fingerprint of a head is the
        mean over prompts: one prompt tells something, a few dozen much more.

        Args:
            patterns: `AttentionPatterns`, of prompts of any lengths; what `run_with_cache` kept; or
                attention probabilities `[..., query, key]`. Of up to `n_ctx` tokens.
            precision: float32 or bfloat16 (default: what the device is good at).

        Returns:
            One fingerprint a pattern, of length 1, `[batch, head, d]` for `AttentionPatterns`, in
            float32 on the model's device; d is `config.fingerprint_dim`.

        Raises:
            ValueError: When this AP-MAE has no fingerprint, or patterns are not square, too long or
                no probabilities.
        """
        if not self.has_fingerprint:  # before anything is run
            raise ValueError(
                "this AP-MAE has no fingerprint "
                f"(fingerprint_dim={self.config.fingerprint_dim}, nothing fitted): fit one with "
                "aplens.mae.fit_fingerprint(mae, model, prompts), or use a bundled AP-MAE"
            )
        embeddings = self.encode(patterns, pool=FINGERPRINT_POOL, precision=precision)
        return self.read_fingerprint(embeddings)

    def read_fingerprint(
        self, embeddings: Float[Tensor, "*pattern d_embed"]
    ) -> Float[Tensor, "*pattern d"]:
        """The fingerprints of embeddings pooled as `FINGERPRINT_POOL`: the last step.

        Gradients flow, so that training can learn it.

        Raises:
            ValueError: When this AP-MAE has no fingerprint.
        """
        layer = self.to_fingerprint
        if layer is None:
            raise ValueError("this AP-MAE has no fingerprint: fingerprint_dim is 0")
        return F.normalize(layer(embeddings.to(layer.weight.dtype)).float(), dim=-1)

    @property
    def has_fingerprint(self) -> bool:
        """Whether there is a fingerprint, and it was fitted or trained."""
        return self.to_fingerprint is not None and bool(self.to_fingerprint.weight.any())

    def encode_patches(
        self,
        scaled: Float[Tensor, "pattern patch pixel"],
        patches: PatchSet = "lower",
        pool: Pool | Sequence[Pool] = DEFAULT_POOL,
        *,
        n_tokens: int | None = None,
        precision: torch.dtype | None = None,
    ) -> Float[Tensor, "pattern d_embed"]:
        """Embed patches that are log-normalized already, all at once: the core of `encode`.

        Gradients flow, so that training can learn a fingerprint.

        Args:
            scaled: Log-normalized lower-triangular patches; as many as some prompt length has.
            patches: "lower": the patches as they are; "all": the whole grid, those above the
                diagonal empty.
            pool: "cls", "mean" or "last_query", or several, which are concatenated.
            n_tokens: Tokens in the prompt (default: as many as the patches hold).
            precision: float32 or bfloat16 (default: what the device is good at).

        Raises:
            ValueError: When the shape is wrong, or `patches` or `pool` is unknown.
        """
        pools = _read_pool(pool)
        require_choice("patches", patches, get_args(PatchSet))
        k = self._check_patches(scaled)
        prompt = self._prompt(k, n_tokens)
        n_rows, places = prompt.n_rows, self._lower_places[:k]
        inputs = self._encoder_input(scaled, prompt)
        with autocast(scaled.device, precision):
            if patches == "lower":
                tokens = self.encoder(inputs, places)
            else:
                tokens = self._encode_whole_grid(inputs, places, n_rows)
        return pool_tokens(tokens, n_rows, pools)

    def _encode_whole_grid(
        self,
        inputs: Float[Tensor, "pattern patch pixel"],
        places: Int[Tensor, " patch"],
        n_rows: int,
    ) -> Float[Tensor, "pattern 1+patch dim"]:
        """Encode the patches above the diagonal as well; return CLS and the lower ones."""
        rows, columns = torch.meshgrid(
            *[torch.arange(n_rows, device=inputs.device)] * 2, indexing="ij"
        )
        square = (rows * self.grid.n_rows + columns).flatten()
        lower = torch.isin(square, places).nonzero().flatten()
        grid = inputs.new_zeros(len(inputs), len(square), inputs.shape[-1])
        grid[:, lower] = inputs
        tokens = self.encoder(grid, square)
        return torch.cat([tokens[:, :1], tokens[:, 1 + lower]], dim=1)

    def save_pretrained(
        self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made when missing.

        Args:
            folder: The folder.
            dtype: Format of the stored weights, such as torch.float16 for half the size (default:
                as they are). They are loaded as float32 in any case.
        """
        save_pretrained(self, folder, dtype)

    @staticmethod
    def from_pretrained(
        name_or_folder: str | os.PathLike[str], *, revision: str | None = None
    ) -> APMAE:
        """Load an AP-MAE: bundled with aplens, from a folder, or from the Hugging Face hub.

        Args:
            name_or_folder: A name out of `list_pretrained()`, a folder that `save_pretrained`
                wrote, or a hub id such as "user/my-ap-mae". The paper's released checkpoints load
                too: "LaughingLogits/AP-MAE-SC2-3B" (docs/released-checkpoints.md).
            revision: Branch, tag or commit on the hub.

        Returns:
            The model in float32 on the CPU, in evaluation mode.

        Raises:
            CheckpointError: When there is no such AP-MAE, or it is damaged, or another kind of
                model. The message says what is missing, unexpected or of the wrong shape.
        """
        config, weights, source = read_pretrained(name_or_folder, revision)
        mae = APMAE(config)
        load_weights(mae, weights, source)
        return mae.eval()

    def _read_patterns(
        self, patterns: Patterns
    ) -> tuple[Float[Tensor, "pattern query key"], tuple[int, ...]]:
        """One leading dimension for all patterns, on the model's device; and what it was before."""
        patterns = as_patterns(patterns)
        if isinstance(patterns, AttentionPatterns):
            lengths = patterns.lengths.unique().tolist()
            if len(lengths) > 1:
                raise ValueError(
                    f"expected prompts of one length, got {lengths} tokens: take them one by one, "
                    "patterns.prompt(i), or length by length, patterns.by_length()"
                )
            values: Any = patterns.crop(lengths[0]).values
        else:
            values = patterns
        if not isinstance(values, Tensor) or values.ndim < 2:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                "expected AttentionPatterns, an ActivationCache or a tensor (..., query, key), "
                f"got {got}"
            )
        leading, shape = tuple(values.shape[:-2]), values.shape[-2:]
        self.grid.n_rows_for(shape[-1])  # refuses patterns that are too long
        return values.to(self.device).reshape(math.prod(leading), *shape), leading

    def _check_patches(self, scaled: Tensor) -> int:
        """Patches of a pattern, when the shape is one that `PatchGrid.patchify` makes."""
        possible = [rows * (rows + 1) // 2 for rows in range(1, self.grid.n_rows + 1)]
        if (
            scaled.ndim != 3
            or scaled.shape[1] not in possible
            or scaled.shape[2] != self.grid.n_pixels
        ):
            raise ValueError(
                f"expected (pattern, patch, {self.grid.n_pixels} pixels) with a number of patches "
                f"among {possible}, got {tuple(scaled.shape)}"
            )
        return scaled.shape[1]


def make_fingerprint_layer(config: APMAEConfig) -> nn.Linear | None:
    """What reads a fingerprint off an embedding; None where the configuration has none."""
    if not config.fingerprint_dim:
        return None
    layer = nn.Linear(config.encoder_dim * len(FINGERPRINT_POOL), config.fingerprint_dim)
    nn.init.zeros_(layer.weight)  # a random one would look like a fingerprint
    nn.init.zeros_(layer.bias)
    return layer


def pool_tokens(
    tokens: Float[Tensor, "pattern 1+patch dim"], n_rows: int, pools: Sequence[Pool]
) -> Float[Tensor, "pattern d_embed"]:
    """One embedding a pattern from the encoder's tokens, CLS first, in float32."""
    pooled = {
        "cls": lambda: tokens[:, 0],
        "mean": lambda: tokens.mean(dim=1),
        "last_query": lambda: tokens[:, -n_rows:].mean(dim=1),
    }
    return torch.cat([pooled[name]().float() for name in pools], dim=-1)


def _read_pool(pool: Pool | Sequence[Pool]) -> tuple[Pool, ...]:
    pools: tuple[Pool, ...] = (pool,) if isinstance(pool, str) else tuple(pool)
    unknown = [name for name in pools if name not in get_args(Pool)]
    if unknown or not pools:
        raise ValueError(f"pool must be one or more of {list(get_args(Pool))}, got {pool!r}")
    return pools


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected a boolean mask of shape {shape}, got {mask.dtype} of {tuple(mask.shape)}"
        )
    hidden = mask.sum(dim=1)
    if mask.numel() and not 1 <= hidden.min() == hidden.max() < shape[1]:
        raise ValueError(
            "a mask must hide the same number of patches in every pattern, at least one and not "
            f"all {shape[1]}: got between {int(hidden.min())} and {int(hidden.max())}"
        )
