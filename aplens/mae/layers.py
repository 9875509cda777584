"""The two halves of an AP-MAE, put together from timm's transformer blocks.

Both are pre-norm transformers with GELU, positions for CLS and every patch of the full grid, and a
final LayerNorm (docs/method.md, step 5). Tokens are `Float[Tensor, "pattern token dim"]`, CLS
first.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Float, Int
from timm.layers import Attention, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from aplens.mae.config import APMAEConfig


class Transformer(nn.Module):
    """Pre-norm blocks, then a LayerNorm."""

    def __init__(self, config: APMAEConfig, half: Literal["encoder", "decoder"]) -> None:
        super().__init__()
        dim, depth, heads, d_head, d_mlp = (
            getattr(config, f"{half}_{size}")
            for size in ("dim", "depth", "heads", "d_head", "d_mlp")
        )
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                mlp_ratio=(d_mlp + 0.5) / dim,  # timm takes the ratio and rounds down: exact so
                qkv_bias=config.qkv_bias,
                norm_layer=norm,  # type: ignore[arg-type]  # timm calls it, a partial will do
                attn_layer=_attention_with(d_head),
            )
            for _ in range(depth)
        )
        self.norm = norm(dim)
        self.apply(_initialize)

    def forward(
        self, tokens: Float[Tensor, "pattern token dim"]
    ) -> Float[Tensor, "pattern token dim"]:
        """Run every block."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class Encoder(nn.Module):
    """Turns patches into tokens, and lets them and CLS attend to each other."""

    def __init__(self, config: APMAEConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        keeps_level = config.patch_input == "centred"
        self.patch_embedding = nn.Sequential(
            nn.Identity()
            if keeps_level
            else nn.LayerNorm(config.n_pixels, eps=config.layer_norm_eps),
            nn.Linear(config.n_pixels, dim),
            nn.LayerNorm(dim, eps=config.layer_norm_eps),
        )
        self.patch_embedding.apply(_initialize)
        # Not zero: the first LayerNorm's gradient explodes on a token without any variance.
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = _grid_positions(config.n_rows, dim)
        self.transformer = Transformer(config, "encoder")

    def forward(
        self,
        patches: Float[Tensor, "pattern patch pixel"],
        places: Int[Tensor, "*pattern patch"],
    ) -> Float[Tensor, "pattern 1+patch dim"]:
        """Encode patches that lie at `places` of the full grid, counted row by row."""
        tokens = self.patch_embedding(patches) + self.positions[0, 1 + places]
        cls_token = repeat(self.cls_token + self.positions[:, :1], "1 1 d -> n 1 d", n=len(patches))
        return self.transformer(torch.cat([cls_token, tokens], dim=1))


class Decoder(nn.Module):
    """Predicts the pixels of hidden patches from what the encoder made of the visible ones.

    Two contexts: `from_tokens` hands it the visible tokens, `from_cls` only CLS. With a fit to
    start from, every token also reads what the fit says of its patch, and the output, which is
    added to the fit, starts at zero.
    """

    def __init__(self, config: APMAEConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.n_places = config.n_rows**2
        self.enc_to_dec = (
            nn.Identity() if config.encoder_dim == dim else nn.Linear(config.encoder_dim, dim)
        )
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = _grid_positions(config.n_rows, dim)
        self.transformer = Transformer(config, "decoder")
        self.to_pixels = nn.Linear(dim, config.n_pixels)
        self.enc_to_dec.apply(_initialize)
        self.to_pixels.apply(_initialize)
        if config.base != "none":
            self.clue_embedding = nn.Linear(config.n_pixels, dim)
            self.clue_embedding.apply(_initialize)
            nn.init.zeros_(self.to_pixels.weight)

    def from_tokens(
        self,
        encoded: Float[Tensor, "pattern 1+visible dim"],
        visible: Int[Tensor, "pattern visible"],
        masked: Int[Tensor, "pattern masked"],
        places: Int[Tensor, " patch"],
        clues: Float[Tensor, "pattern patch pixel"] | None,
    ) -> Float[Tensor, "pattern masked pixel"]:
        """Decode as a masked autoencoder does (He et al., 2022).

        Patches lie at `places` of the full grid. `clues` are what the fit predicts for a hidden
        patch, and what it misses of a visible one.
        """
        cls_token, seen = self.enc_to_dec(encoded).split([1, visible.shape[1]], dim=1)
        hidden = repeat(self.mask_token, "d -> n m d", n=len(masked), m=masked.shape[1])
        order = torch.cat([visible, masked], dim=1).argsort(dim=1)
        tokens = take(torch.cat([seen, hidden], dim=1), order) + self.positions[:, 1 + places]
        if clues is not None:
            tokens = tokens + self.clue_embedding(clues)
        return self._to_pixels(cls_token, tokens, masked)

    def from_cls(
        self,
        encoded: Float[Tensor, "pattern 1+visible dim"],
        visible: Int[Tensor, "pattern visible"],
        masked: Int[Tensor, "pattern masked"],
    ) -> Float[Tensor, "pattern masked pixel"]:
        """Decode as the paper's released code does (docs/method.md, step 5).

        The whole grid takes part: visible places hold the mask token, all others zero, each plus
        its position. So nothing but CLS tells what the visible patches hold. Visible and masked
        patches are given by their places in the full grid.
        """
        cls_token = self.enc_to_dec(encoded[:, :1])
        tokens = cls_token.new_zeros(len(visible), self.n_places, cls_token.shape[-1])
        tokens[torch.arange(len(visible))[:, None], visible] = self.mask_token.to(tokens.dtype)
        return self._to_pixels(cls_token, tokens + self.positions[:, 1:], masked)

    def _to_pixels(
        self,
        cls_token: Float[Tensor, "pattern 1 dim"],
        tokens: Float[Tensor, "pattern place dim"],
        wanted: Int[Tensor, "pattern masked"],
    ) -> Float[Tensor, "pattern masked pixel"]:
        decoded = self.transformer(torch.cat([cls_token + self.positions[:, :1], tokens], dim=1))
        return self.to_pixels(take(decoded, 1 + wanted))


def take(
    values: Float[Tensor, "pattern many dim"], index: Int[Tensor, "pattern some"]
) -> Float[Tensor, "pattern some dim"]:
    """Pick from every pattern its own rows."""
    # Copies whole rows; `gather` and indexing go number by number, which takes twice as long.
    n, many, dim = values.shape
    rows = index + many * torch.arange(n, device=values.device)[:, None]
    taken = values.reshape(n * many, dim).index_select(0, rows.flatten())
    return taken.view(*index.shape, dim)


class _Attention(Attention):
    """timm's attention, without its fused kernel where that is slower."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        # For a few dozen tokens in bfloat16 a CPU is faster without the fused kernel: by 7 % of the
        # encoding in the paper's size, by 23 % in that of aplens-base.
        fused = not (x.device.type == "cpu" and torch.is_autocast_enabled("cpu"))
        object.__setattr__(self, "fused_attn", fused)  # timm calls it final
        return super().forward(x, *args, **options)


def _attention_with(d_head: int) -> type[Attention]:
    """The attention with a head width of its own: a Block takes a class, and no head width."""

    class OfWidth(_Attention):
        # What it makes is of the class above, which pickle finds by its name; not of this one.
        def __new__(cls, *args: Any, **options: Any) -> Any:
            return _Attention(*args, **options | {"attn_head_dim": d_head})

    return OfWidth


def _grid_positions(n_rows: int, dim: int) -> nn.Parameter:
    """Learned positions for CLS and every place of the grid, starting as sines and cosines."""
    grid = build_sincos2d_pos_embed([n_rows, n_rows], dim)
    return nn.Parameter(torch.cat([torch.zeros(1, dim), grid])[None])


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
