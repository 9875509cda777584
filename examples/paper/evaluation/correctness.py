"""Whether the model's prediction is right, told from the embeddings of all its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from aplens.mae import APMAE
from aplens.models import ModelInfo
from aplens.scenarios import Scenario, Scenarios
from paper.evaluation.embeddings import POOLS, encode_all_pools, select_pools
from paper.evaluation.prompts import SeenPrompt

if TYPE_CHECKING:
    import pandas as pd

    from aplens.correctness import Observations

#: What needs no AP-MAE.
CORRECTNESS_BASELINES = ("majority", "confidence", "statistics")

_FOLDS = 5


class CorrectnessSamples:
    """Outcomes and every head's embeddings, in float16, prompt by prompt.

    Args:
        maes: The AP-MAEs by label.
        info: The model that is observed.
        pools: Which of `POOLS` to predict from.
    """

    def __init__(
        self, maes: Mapping[str, APMAE], info: ModelInfo, pools: Sequence[str] = tuple(POOLS)
    ) -> None:
        self._maes = dict(maes)
        self._info = info
        self._pools = tuple(pools)
        self._embeddings: dict[str, list[Tensor]] = {label: [] for label in maes}
        self._statistics: list[Tensor] = []
        self._scenarios: list[Scenario] = []
        self._outcomes: list[pd.DataFrame] = []

    def see(self, seen: SeenPrompt, scenario: Scenario) -> None:
        """Keep one more prompt.

        Raises:
            ValueError: When an embedding overflows float16.
        """
        from aplens.correctness import describe_outcomes, pattern_statistics

        for label, mae in self._maes.items():
            embeddings = encode_all_pools(mae, seen.scaled).half()
            if not embeddings.isfinite().all():
                raise ValueError(f"an embedding of {label} does not fit float16")
            self._embeddings[label].append(embeddings)
        self._statistics.append(pattern_statistics(seen.attention).cpu())
        self._scenarios.append(scenario)
        targets = Scenarios([scenario]).targets()
        self._outcomes.append(describe_outcomes(seen.logits[None], targets))

    def evaluate(self, seed: int = 0) -> pd.DataFrame:
        """AUC and accuracy, grouped 5-fold by source file (`evaluate_predictors`).

        Every pool of every AP-MAE is reduced to a few directions a head and given to a logistic
        regression. Beside it, on the same folds: always the same answer, the model's own
        confidence, and eight hand-made statistics of each head's pattern.
        """
        import pandas as pd

        from aplens.correctness import evaluate_predictors

        frames = []
        baselines = self._observe(np.zeros((len(self._scenarios), len(self._info.heads), 1)))
        table = evaluate_predictors(
            baselines, features=CORRECTNESS_BASELINES, n_folds=_FOLDS, seed=seed
        )
        frames.append(table.rename(columns={"features": "input"}))
        for label, parts in self._embeddings.items():
            embeddings = np.stack([part.numpy() for part in parts])
            for pool in self._pools:
                observed = self._observe(select_pools(embeddings, POOLS[pool]))
                table = evaluate_predictors(
                    observed, features=("embeddings",), n_folds=_FOLDS, seed=seed
                )
                frames.append(table.drop(columns="features").assign(input=f"{label}: {pool}"))
        return pd.concat(frames, ignore_index=True).drop(columns="task")

    def _observe(self, embeddings: Float[np.ndarray, "scenario head d_embed"]) -> Observations:
        import pandas as pd

        from aplens.correctness import Observations

        table = Scenarios(self._scenarios).to_frame()
        table["scenario"] = range(len(table))
        outcomes = pd.concat(self._outcomes, ignore_index=True)
        return Observations(
            table.join(outcomes),
            self._info.heads,
            embeddings,
            {"statistics": np.stack([part.numpy() for part in self._statistics])},
            model=self._info,
        )
