"""The mean of several AP-MAEs' weights, which were trained from the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import aplens


def average(names: Sequence[str], folder: Path) -> aplens.APMAE:
    """Save an AP-MAE with the mean of the others' weights, in float16 (Wortsman et al. 2022).

    Raises:
        ValueError: When there is one only, or their weights are not of the same shapes.
    """
    maes = [aplens.APMAE.from_pretrained(name) for name in names]
    if len(maes) < 2:
        raise ValueError(f"a mean is of two AP-MAEs or more, got {list(names)}")
    weights = [mae.state_dict() for mae in maes]
    shapes = [{key: value.shape for key, value in each.items()} for each in weights]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[-1]:
            raise ValueError(f"the weights of {name} have other shapes than those of {names[-1]}")
    mean = maes[-1]  # with the last one's configuration: of how it was trained it knows most
    mean.load_state_dict(
        {key: torch.stack([each[key] for each in weights]).mean(0) for key in weights[-1]}
    )
    mean.save_pretrained(folder, torch.float16)
    return mean
