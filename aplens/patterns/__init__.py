"""Attention patterns: collecting them by hooks, log-normalizing them, cutting them into patches."""

from aplens.patterns.collect import (
    AttentionPatterns,
    PatternCollector,
    collect_patterns,
    stream_patterns,
)
from aplens.patterns.cropping import crop_patches, depth_scales
from aplens.patterns.normalize import log_normalize
from aplens.patterns.patches import PatchGrid

__all__ = [
    "AttentionPatterns",
    "PatchGrid",
    "PatternCollector",
    "collect_patterns",
    "crop_patches",
    "depth_scales",
    "log_normalize",
    "stream_patterns",
]
