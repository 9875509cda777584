"""Make tests/data/released_golden.safetensors by running the paper's released code.

    git clone https://github.com/AISE-TUDelft/AP-MAE
    python tests/make_released_golden.py AP-MAE/Model

Needs torchvision besides what aplens needs. For each checkpoint the file holds

    <name>.tokens     its encoder's `encode`: CLS, then the whole grid row by row
    <name>.mask       True where a lower-triangular patch was hidden
    <name>.predicted  the hidden patches as its decoder predicts them, in row-major order
    <name>.loss       its loss

for the weights and patterns of released_helpers.py; configurations and shapes are in the header.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from unittest.mock import patch

import torch
from released_helpers import GOLDEN, make_patterns, make_weights
from safetensors.torch import save_file

N_PATTERNS = 2

# What transformers and the released training script write besides the model's own keys.
ALONGSIDE = {
    "architectures": ["APMAE"],
    "model_type": "ap_mae",
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "attention_scaler": "log_normalize",
    "target_model_name": "bigcode/starcoder2-3b",
    "encoder_device": "cuda:0",
    "queries": ["random"],
    "base_learning_rate": 1.5e-4,
}

CHECKPOINTS: dict[str, dict[str, Any]] = {
    # The paper's grid of 8 × 8 patches, and choices, in small.
    "same_width": {
        "max_length": 64,
        "patch_size": 8,
        "mask_ratio": 0.5,
        "encoder_dim": 32,
        "encoder_layers": 3,
        "encoder_heads": 3,
        "encoder_dim_head": 16,
        "encoder_mlp_dim": 40,
        "decoder_dim": 32,
        "decoder_layers": 2,
        "decoder_heads": 2,
        "decoder_dim_head": 24,
        "decoder_mlp_dim": 48,
    },
    # Everything else: biases, dropout, and a decoder of one head without an output projection.
    "other_width": {
        "max_length": 32,
        "patch_size": 8,
        "mask_ratio": 0.75,
        "encoder_dim": 24,
        "encoder_layers": 2,
        "encoder_heads": 2,
        "encoder_dim_head": 20,
        "encoder_mlp_dim": 36,
        "encoder_dropout": 0.1,
        "decoder_dim": 16,
        "decoder_layers": 2,
        "decoder_heads": 1,
        "decoder_dim_head": 16,
        "decoder_mlp_dim": 28,
        "layer_norm_eps": 1e-3,
        "qkv_bias": True,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_folder", help="the released repository's folder Model")
    sys.path.insert(0, parser.parse_args().model_folder)

    checkpoints, results = {}, {}
    for name, sizes in CHECKPOINTS.items():
        checkpoint, tensors = run_released(sizes)
        checkpoints[name] = checkpoint
        results |= {f"{name}.{key}": value.contiguous() for key, value in tensors.items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    save_file(results, GOLDEN, metadata={"checkpoints": json.dumps(checkpoints)})
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


@torch.no_grad()
def run_released(sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from ap_mae import APMAE, APMAEConfig
    from DataUtil.Scalers import log_normalize_scaler

    config = APMAEConfig(**sizes)
    model = APMAE(config).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(make_weights(shapes))

    n_rows = sizes["max_length"] // sizes["patch_size"]
    rows, columns = torch.tril_indices(n_rows, n_rows)
    lower = rows * n_rows + columns
    scaled = log_normalize_scaler(make_patterns(N_PATTERNS, sizes["max_length"])[:, None], config)
    draws = torch.rand(N_PATTERNS, len(lower), generator=torch.Generator().manual_seed(0))
    with patch("torch.rand", return_value=draws):
        loss, predicted, masked, _, _ = model(scaled, visualizing=True)

    own = json.loads(config.to_json_string())
    return {"config": own | ALONGSIDE, "shapes": shapes}, {
        "tokens": model.encoder.encode(scaled),
        "mask": (lower[None, :, None] == masked[:, None, :]).any(-1),
        "predicted": torch.stack(
            [patches[order] for patches, order in zip(predicted, masked.argsort(1), strict=True)]
        ),
        "loss": loss,
    }


if __name__ == "__main__":
    main()
