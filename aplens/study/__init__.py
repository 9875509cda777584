"""A whole study from one TOML file: mined, trained, observed, ranked, ablated, reported."""

from aplens.study.config import StudySettings
from aplens.study.run import Study
from aplens.study.stages import Reporter

__all__ = ["Reporter", "Study", "StudySettings"]
