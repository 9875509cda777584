"""A whole study from one TOML file: mined, trained, observed, ranked, ablated, reported."""

from aplens._io import atomic_write
from aplens._store import Store
from aplens.study.config import StudySettings
from aplens.study.folder import StudyFolder
from aplens.study.reading import Count, read_settings
from aplens.study.run import Study
from aplens.study.stages import Reporter
from aplens.study.terminal import reporting

__all__ = [
    "Count",
    "Reporter",
    "Store",
    "Study",
    "StudyFolder",
    "StudySettings",
    "atomic_write",
    "read_settings",
    "reporting",
]
