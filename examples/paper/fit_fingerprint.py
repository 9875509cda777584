"""The fingerprint of an AP-MAE, fitted on files that no evaluation uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import aplens
from aplens.mae import fit_fingerprint
from aplens.scenarios import Scenarios
from aplens.study import Reporter
from paper.held_out import DOMAINS, draw_prompts


def fit(
    mae_name: str,
    model_name: str,
    n_prompts: int,
    folder: Path,
    reporter: Reporter,
    dim: int,
    load: Callable[[str, str], Any] = aplens.load_model,
) -> None:
    """Fit a fingerprint on prompts of all domains, and save the AP-MAE with it in float16."""
    mae = aplens.APMAE.from_pretrained(mae_name)
    model = load(model_name, "bridge")
    prompts = Scenarios(
        scenario
        for domain in DOMAINS
        for scenario in draw_prompts(model, domain, n_prompts, mae.config.n_ctx, held_out=False)
    )
    reporter.start("fit-fingerprint", f"{mae_name} on {len(prompts)} prompts of {model_name}")
    fit_fingerprint(mae, model, prompts, dim=dim, progress=reporter.update)
    mae.save_pretrained(folder, torch.float16)
