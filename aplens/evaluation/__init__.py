"""Measuring AP-MAEs: reconstruction beside baselines, linear probes, correctness."""

from aplens.evaluation.gaussian import GaussianRegression, choose_gaussian
from aplens.evaluation.measure import Evaluation, EvaluationSettings, evaluate_apmaes
from aplens.evaluation.nearest import nearest_visible
from aplens.evaluation.reconstruction import BASELINES, compare_reconstruction
from aplens.evaluation.tables import evaluation_to_markdown

__all__ = [
    "BASELINES",
    "Evaluation",
    "EvaluationSettings",
    "GaussianRegression",
    "choose_gaussian",
    "compare_reconstruction",
    "evaluate_apmaes",
    "evaluation_to_markdown",
    "nearest_visible",
]
