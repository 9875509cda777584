"""Figures, views for notebooks, and the HTML report."""

from aplens.plots import (
    plot_ablation_curve,
    plot_head_map,
    plot_patching,
    plot_predictors,
    plot_reconstruction,
    plot_reconstruction_error,
    plot_shap_summary,
    plot_task_accuracy,
)
from aplens.viz.embed import View
from aplens.viz.heads_view import show_heads
from aplens.viz.pattern_views import show_clusters, show_reconstruction
from aplens.viz.report import ReportData, SampleScenario, render_report, write_report

__all__ = [
    "ReportData",
    "SampleScenario",
    "View",
    "plot_ablation_curve",
    "plot_head_map",
    "plot_patching",
    "plot_predictors",
    "plot_reconstruction",
    "plot_reconstruction_error",
    "plot_shap_summary",
    "plot_task_accuracy",
    "render_report",
    "show_clusters",
    "show_heads",
    "show_reconstruction",
    "write_report",
]
