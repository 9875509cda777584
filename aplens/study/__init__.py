"""A whole study from one TOML file: mined, trained, observed, ranked, ablated, reported."""

from aplens._markdown import code, escape, frame_to_markdown, table_lines
from aplens.study.config import StudySettings, read_settings
from aplens.study.run import Study
from aplens.study.stages import Reporter
from aplens.study.terminal import reporting

__all__ = [
    "Reporter",
    "Study",
    "StudySettings",
    "code",
    "escape",
    "frame_to_markdown",
    "read_settings",
    "reporting",
    "table_lines",
]
