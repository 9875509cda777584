"""Figures and the HTML report."""

from aplens.viz.figures import (
    plot_ablation_curve,
    plot_head_map,
    plot_predictors,
    plot_reconstruction,
    plot_reconstruction_error,
    plot_shap_summary,
    plot_task_accuracy,
)
from aplens.viz.report import ReportData, SampleScenario, render_report, write_report

__all__ = [
    "ReportData",
    "SampleScenario",
    "plot_ablation_curve",
    "plot_head_map",
    "plot_predictors",
    "plot_reconstruction",
    "plot_reconstruction_error",
    "plot_shap_summary",
    "plot_task_accuracy",
    "render_report",
    "write_report",
]
