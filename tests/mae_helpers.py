"""Small AP-MAEs, and causal patterns without a language model."""

from __future__ import annotations

import torch

from aplens.mae import APMAE, APMAEConfig

TINY = {
    "n_ctx": 16,
    "patch_size": 4,
    "encoder_dim": 16,
    "encoder_depth": 2,
    "encoder_heads": 3,
    "encoder_d_head": 8,  # 3 × 8 = 24: wider inside than the model
    "encoder_d_mlp": 24,
    "decoder_dim": 12,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "decoder_d_head": 8,
    "decoder_d_mlp": 20,
}


def tiny_config(**changes) -> APMAEConfig:
    return APMAEConfig(**{**TINY, **changes})


def tiny_mae(seed=0, **changes) -> APMAE:
    """An AP-MAE with random weights everywhere, also where training starts at zero."""
    mae = APMAE(tiny_config(**changes), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        if mae.mean_patches is not None:
            mae.mean_patches.copy_(scaled_patches(mae, 64, seed=99).mean(0))
    return mae


def softmax_patterns(*leading, n_tokens=16, seed=0) -> torch.Tensor:
    """Random causal attention, [*leading, query, key]."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(*leading, n_tokens, n_tokens, generator=generator)
    above = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    return scores.masked_fill(above, -torch.inf).softmax(-1)


def scaled_patches(mae, n, seed=0, n_tokens=16) -> torch.Tensor:
    from aplens.patterns import log_normalize

    return log_normalize(mae.grid.patchify(softmax_patterns(n, n_tokens=n_tokens, seed=seed)))
