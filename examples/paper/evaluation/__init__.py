"""Measuring AP-MAEs: reconstruction beside baselines, linear probes, correctness."""

from paper.evaluation.gaussian import GaussianRegression, choose_gaussian
from paper.evaluation.measure import Evaluation, EvaluationSettings, evaluate_apmaes
from paper.evaluation.nearest import nearest_visible
from paper.evaluation.reconstruction import BASELINES
from paper.evaluation.tables import evaluation_to_markdown

__all__ = [
    "BASELINES",
    "Evaluation",
    "EvaluationSettings",
    "GaussianRegression",
    "choose_gaussian",
    "evaluate_apmaes",
    "evaluation_to_markdown",
    "nearest_visible",
]
