"""Scoring heads: observations, clusters, the correctness predictor with its baselines, rankings."""

from aplens.scoring.attribution import HeadAttributions, attribute_heads
from aplens.scoring.catalogue import PatternSample, TemplateCatalogue, sample_patterns
from aplens.scoring.clusters import HeadClusters
from aplens.scoring.distance import pattern_distances
from aplens.scoring.evaluation import evaluate_holdout, evaluate_predictors
from aplens.scoring.observations import HEAD_NUMBERS, Observations
from aplens.scoring.observing import observe
from aplens.scoring.predictor import FEATURE_SETS, CorrectnessPredictor
from aplens.scoring.regions import REGIONS
from aplens.scoring.scorer import HeadScorer
from aplens.scoring.single_tasks import evaluate_single_tasks
from aplens.scoring.splits import split_by_file
from aplens.scoring.statistics import STATISTICS, pattern_statistics
from aplens.scoring.surprise import SURPRISES
from aplens.scoring.unsupervised import score_heads

__all__ = [
    "FEATURE_SETS",
    "HEAD_NUMBERS",
    "REGIONS",
    "STATISTICS",
    "SURPRISES",
    "CorrectnessPredictor",
    "HeadAttributions",
    "HeadClusters",
    "HeadScorer",
    "Observations",
    "PatternSample",
    "TemplateCatalogue",
    "attribute_heads",
    "evaluate_holdout",
    "evaluate_predictors",
    "evaluate_single_tasks",
    "observe",
    "pattern_distances",
    "pattern_statistics",
    "sample_patterns",
    "score_heads",
    "split_by_file",
]
