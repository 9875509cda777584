"""What patching returns: a table of patches, the heads that recover most, a plot."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aplens.heads import Head
from aplens.tables import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Metrics closer than this, relative and absolute, are the same number computed in float32.
_FLOAT_ERROR = 1e-6


@dataclass(frozen=True, repr=False)
class PatchingTable(Shown):
    """What patching did to a metric, one row a patch.

    Attributes:
        frame: The rows. Of `activation_patch`: `name`, `layer`, `head`, `activation`, and
            `position` and `token` when patched by position, the token being that of the first
            clean prompt, with ", …" where others have another. Of `path_patch`: `sender`,
            `sender_layer`, `sender_head`, `receiver`, `receiver_layer`, `receiver_head`,
            `component`; the last three are missing values where the receiver is "logits". Of both:
            `metric`, in the patched run, and `recovered` = (metric − corrupted) / (clean −
            corrupted): 0 where the patch did nothing, 1 where it brought the clean metric back.
        clean: The metric of the clean run.
        corrupted: The metric of the corrupted run.
    """

    frame: pd.DataFrame
    clean: float
    corrupted: float

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        kind = "paths" if "sender" in self.frame else "activations"
        return (
            f"PatchingTable({len(self)} {kind}, metric {self.clean:.3g} clean and "
            f"{self.corrupted:.3g} corrupted)"
        )

    def _shown_rows(self) -> pd.DataFrame:
        """What moved the metric most, first."""
        order = (self.frame["metric"] - self.corrupted).abs().sort_values(ascending=False)
        names = ("name", "sender", "receiver", "activation", "component", "position")
        columns = [name for name in names if name in self.frame]
        return self.frame.loc[order.index, [*columns, "metric", "recovered"]]

    def to_frame(self) -> pd.DataFrame:
        """A copy of the rows."""
        return self.frame.copy()

    def top(self, k: int) -> tuple[Head, ...]:
        """The `k` heads, of `path_patch` senders, one of whose rows recovers most, best first.

        Raises:
            ValueError: When `k` is negative, or clean and corrupted gave the same metric.
        """
        if k < 0:
            raise ValueError(f"k must be 0 or more, got {k}")
        self.require_recovery()
        columns = ["sender_layer", "sender_head"] if "sender" in self.frame else ["layer", "head"]
        best = self.frame.groupby(columns)["recovered"].max()
        ordered = best.sort_values(ascending=False, kind="stable").head(k)
        return tuple(Head(int(layer), int(head)) for layer, head in ordered.index)

    def plot(self, k: int = 30) -> Figure:
        """Bars a head, or a map of senders × receivers or of heads × positions with their tokens.

        The scale reaches at least ±0.25 of what there is to recover, so that small shares look
        small. Where there is no room for every name at an axis, the axis says how many there are.

        Args:
            k: How many bars at most, those that moved the metric furthest; a map shows all.

        Raises:
            ValueError: When clean and corrupted gave the same metric.
        """
        from aplens.plots import plot_patching

        return plot_patching(self, k)

    def require_recovery(self) -> None:
        """Raise a ValueError when clean and corrupted gave the same metric: no share is defined."""
        if self.frame["recovered"].isna().any():
            raise ValueError(
                f"there is nothing to recover: the metric is {self.clean:g} in the clean and "
                f"{self.corrupted:g} in the corrupted run; see the column 'metric' of to_frame()"
            )


def make_table(
    frame: pd.DataFrame, values: list[float], clean: float, corrupted: float
) -> PatchingTable:
    """Add the metric and the share recovered."""
    if math.isclose(clean, corrupted, rel_tol=_FLOAT_ERROR, abs_tol=_FLOAT_ERROR):
        warnings.warn(
            f"there is nothing to recover, and 'recovered' is NaN: the metric is {clean:g} in the "
            f"clean and {corrupted:g} in the corrupted run",
            stacklevel=4,  # past the public function and its no_grad wrapper
        )
        recovered = [math.nan] * len(values)
    else:
        recovered = [(value - corrupted) / (clean - corrupted) for value in values]
    frame = frame.assign(metric=values, recovered=recovered)
    return PatchingTable(frame, clean, corrupted)
