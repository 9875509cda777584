"""Tables in Markdown."""

from __future__ import annotations

import pandas as pd

from aplens._markdown import frame_to_markdown


def test_bounds_share_a_cell_with_their_figure_and_nan_is_a_dash():
    frame = pd.DataFrame(
        {
            "name": ["a|b", "c"],
            "auc": [0.51234, float("nan")],
            "auc_low": [0.4, float("nan")],
            "auc_high": [0.6, float("nan")],
            "n_seen": [3, 4],
        }
    )
    assert frame_to_markdown(frame).splitlines() == [
        "| name | auc | n seen |",
        "| --- | --- | --- |",
        "| a\\|b | 0.512 [0.400, 0.600] | 3 |",
        "| c | – | 4 |",
    ]
