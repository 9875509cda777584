"""The configuration of an AP-MAE: sizes, and the choices that change what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from aplens._documents import check, require_choice

DecoderContext = Literal["tokens", "cls"]
Base = Literal["none", "additive", "low_rank"]
PatchInput = Literal["layer_norm", "centred"]


@dataclass(frozen=True, kw_only=True)
class APMAEConfig:
    """Sizes and choices of an AP-MAE. The defaults are the paper's sizes (docs/method.md, step 5).

    Attributes:
        n_ctx: Longest prompt, in tokens; patterns are at most n_ctx × n_ctx.
        patch_size: Side of a square patch, in tokens; divides `n_ctx`.
        mask_ratio: Share of the lower-triangular patches that training hides, between 0 and 1.
        encoder_dim: Width of the encoder's tokens.
        encoder_depth: Blocks of the encoder.
        encoder_heads: Attention heads of an encoder block.
        encoder_d_head: Width of one of them; heads × d_head may differ from `encoder_dim`.
        encoder_d_mlp: Hidden width of an encoder block's MLP.
        decoder_dim: Width of the decoder's tokens.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of a decoder block.
        decoder_d_head: Width of one of them.
        decoder_d_mlp: Hidden width of a decoder block's MLP.
        patch_input: How the encoder receives a patch. "layer_norm": shifted and stretched to mean 0
            and variance 1, as in the paper; how much attention the patch holds is lost. "centred":
            minus the mean patch of that position; the level stays, and embeddings tell more about
            the pattern.
        decoder_context: What the decoder sees of the visible patches. "tokens": their encodings, as
            He et al. (2022) define a masked autoencoder. "cls": nothing but the CLS token, as the
            paper's released code behaves.
        base: What the decoder starts from. "none": nothing, it predicts the pixels. "additive":
            the row + column + diagonal fit of the visible patches (`aplens.mae.additive`).
            "low_rank": that fit, completed by query × key products (`aplens.mae.low_rank`). The
            decoder reads the fit and predicts what is left over.
        summary_weight: How much training counts the error of what CLS alone tells about the whole
            pattern (`aplens.mae.summary`), beside that on hidden patches; 0 as in the paper.
        fingerprint_dim: Numbers in a fingerprint (`APMAE.fingerprint`); 0: this AP-MAE has none, as
            in the paper.
        identity_weight: How much training counts the error of telling heads apart by their
            fingerprints on other prompts (`aplens.mae.identity`), beside that on hidden patches;
            0 as in the paper: the fingerprint is then fitted when all else is trained.
        layer_norm_eps: Epsilon of every LayerNorm.
        qkv_bias: Whether the query, key and value projections have a bias.
    """

    n_ctx: int = 256
    patch_size: int = 32
    mask_ratio: float = 0.5
    encoder_dim: int = 512
    encoder_depth: int = 24
    encoder_heads: int = 16
    encoder_d_head: int = 64
    encoder_d_mlp: int = 2048
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 8
    decoder_d_head: int = 64
    decoder_d_mlp: int = 2048
    patch_input: PatchInput = "layer_norm"
    decoder_context: DecoderContext = "tokens"
    base: Base = "none"
    summary_weight: float = 0.0
    fingerprint_dim: int = 0
    identity_weight: float = 0.0
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse a configuration no model can be built from.

        Raises:
            ValueError: When a field has the wrong type or is out of range, or two of them
                contradict each other.
        """
        for field in dataclasses.fields(self):
            kind: Any = type(field.default)
            check(getattr(self, field.name), kind, field.name)
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.n_ctx % self.patch_size or self.n_ctx == self.patch_size:
            raise ValueError(
                "n_ctx must be a multiple of patch_size, and at least twice as large: "
                f"got n_ctx={self.n_ctx}, patch_size={self.patch_size}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, got {self.mask_ratio}")
        for name in ("summary_weight", "identity_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.fingerprint_dim < 0:
            raise ValueError(f"fingerprint_dim must not be negative, got {self.fingerprint_dim}")
        if self.identity_weight and not self.fingerprint_dim:
            raise ValueError(
                f"identity_weight={self.identity_weight} needs a fingerprint to tell heads by: "
                "fingerprint_dim is 0"
            )
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps must be positive, got {self.layer_norm_eps}")
        for name in ("encoder_dim", "decoder_dim"):
            if getattr(self, name) % 4:
                raise ValueError(
                    f"{name} must be a multiple of 4 (positions start as sines and cosines of rows "
                    f"and columns), got {getattr(self, name)}"
                )
        require_choice("patch_input", self.patch_input, get_args(PatchInput))
        require_choice("decoder_context", self.decoder_context, get_args(DecoderContext))
        require_choice("base", self.base, get_args(Base))
        if self.base != "none" and self.decoder_context == "cls":
            raise ValueError(
                f"base={self.base!r} needs decoder_context='tokens': the fit tells the decoder "
                "about the visible patches, which decoder_context='cls' promises to withhold"
            )

    @property
    def n_rows(self) -> int:
        """Rows (and columns) of the patch grid."""
        return self.n_ctx // self.patch_size

    @property
    def n_pixels(self) -> int:
        """Attention values in one patch."""
        return self.patch_size**2

    @property
    def needs_mean(self) -> bool:
        """Whether the model holds the mean patch of every position."""
        return self.patch_input == "centred" or self.base != "none"

    @property
    def fewest_weights(self) -> int:
        """Numbers in the matrices of a model of these sizes, which has a few more beside them."""
        halves = (
            (self.encoder_dim, self.encoder_depth, self.encoder_heads * self.encoder_d_head),
            (self.decoder_dim, self.decoder_depth, self.decoder_heads * self.decoder_d_head),
        )
        mlps = (self.encoder_d_mlp, self.decoder_d_mlp)
        fingerprint = 3 * self.encoder_dim * self.fingerprint_dim
        return fingerprint + sum(
            dim * (depth * (4 * width + 2 * d_mlp) + self.n_rows**2 + self.n_pixels)
            for (dim, depth, width), d_mlp in zip(halves, mlps, strict=True)
        )

    @classmethod
    def paper(cls) -> APMAEConfig:
        """The paper's sizes: 256 tokens, patches of 32, encoder 512 × 24, decoder 512 × 8.

        The decoder sees the visible tokens. For the behaviour of the released code, replace
        `decoder_context` by "cls".
        """
        return cls()

    @classmethod
    def small(cls) -> APMAEConfig:
        """For a CPU: the paper's 256 tokens and patches of 32, 128 wide, 4 + 2 layers.

        Starts from the low-rank fit, keeps the level of a patch, asks CLS for a summary, and has a
        fingerprint.
        """
        return cls(
            encoder_dim=128,
            encoder_depth=4,
            encoder_heads=2,
            encoder_d_head=64,
            encoder_d_mlp=256,
            decoder_dim=128,
            decoder_depth=2,
            decoder_heads=2,
            decoder_d_head=64,
            decoder_d_mlp=256,
            patch_input="centred",
            base="low_rank",
            summary_weight=0.4,
            fingerprint_dim=64,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> APMAEConfig:
        """The configuration of which these are all fields, as `dataclasses.asdict` gives them.

        Raises:
            ValueError: When a key is missing or unknown, or a value of the wrong type or out of
                range.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
        if missing or unknown:
            raise ValueError(f"AP-MAE configuration: missing keys {missing}, unknown {unknown}")
        return cls(**values)


_SIZES = (
    "n_ctx",
    "patch_size",
    *(
        f"{part}_{size}"
        for part in ("encoder", "decoder")
        for size in ("dim", "depth", "heads", "d_head", "d_mlp")
    ),
)
