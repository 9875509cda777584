"""What CLS is asked to tell: a small picture of the whole pattern, and of its last query.

A decoder that sees the visible tokens asks nothing of CLS, and what nobody asks for is not learned.
So the configuration may add to the loss how well a linear map reads two things off CLS, of hidden
and visible patches alike: the mean of each cell of a patch, and, finer, the attention of the last
query, which is the one that predicts.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from aplens.mae.config import APMAEConfig

#: Cells along each side of a patch, and along the part of the last query's row in a patch.
_CELLS, _LAST_QUERY_CELLS = 4, 8


class Summary(nn.Module):
    """Reads the small picture off CLS."""

    def __init__(self, config: APMAEConfig) -> None:
        super().__init__()
        n_patches = config.n_rows * (config.n_rows + 1) // 2
        self.cells = nn.Linear(config.encoder_dim, n_patches * _CELLS**2)
        self.last_query = nn.Linear(config.encoder_dim, config.n_rows * _LAST_QUERY_CELLS)

    def loss(
        self,
        cls_token: Float[Tensor, "pattern dim"],
        deviation: Float[Tensor, "pattern patch pixel"],
        n_rows: int,
        last_row: int,
    ) -> Float[Tensor, ""]:
        """Mean squared error over the cells, plus that over the last query's cells.

        `deviation` is that from the mean patch, in any unit, of hidden patches as well; the
        prompt's last token is in row `last_row` of its patches.
        """
        side = math.isqrt(deviation.shape[-1])
        patches = deviation.unflatten(-1, (side, side))
        cells = F.adaptive_avg_pool2d(patches, _CELLS).flatten(1)
        last = F.adaptive_avg_pool1d(patches[:, -n_rows:, last_row], _LAST_QUERY_CELLS).flatten(1)
        told = self.cells(cls_token)[:, : cells.shape[1]]
        told_last = self.last_query(cls_token)[:, : last.shape[1]]
        return F.mse_loss(told, cells) + F.mse_loss(told_last, last)
