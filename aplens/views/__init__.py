"""Figures, and views for notebooks."""

from aplens.plots import (
    plot_ablation_curve,
    plot_head_map,
    plot_head_places,
    plot_patching,
    plot_predictors,
    plot_reconstruction,
    plot_reconstruction_error,
    plot_shap_summary,
    plot_task_accuracy,
)
from aplens.views.cards import HeadCards, describe_heads
from aplens.views.circuitsvis_view import show_in_circuitsvis
from aplens.views.embed import View
from aplens.views.head_map import HeadMap, map_heads
from aplens.views.heads_view import show_heads
from aplens.views.pattern_views import show_clusters, show_reconstruction

__all__ = [
    "HeadCards",
    "HeadMap",
    "View",
    "describe_heads",
    "map_heads",
    "plot_ablation_curve",
    "plot_head_map",
    "plot_head_places",
    "plot_patching",
    "plot_predictors",
    "plot_reconstruction",
    "plot_reconstruction_error",
    "plot_shap_summary",
    "plot_task_accuracy",
    "show_clusters",
    "show_heads",
    "show_in_circuitsvis",
    "show_reconstruction",
]
