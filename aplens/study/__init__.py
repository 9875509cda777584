"""A whole study from one TOML file: mined, trained, observed, ranked, ablated, reported."""

from aplens.study.config import StudySettings
from aplens.study.folder import StudyFolder
from aplens.study.reading import read_settings
from aplens.study.run import Study
from aplens.study.stages import Reporter
from aplens.study.terminal import reporting

__all__ = [
    "Reporter",
    "Study",
    "StudyFolder",
    "StudySettings",
    "read_settings",
    "reporting",
]
