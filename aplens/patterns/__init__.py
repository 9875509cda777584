"""Attention patterns: collecting, log-normalizing, cutting into patches and naming them."""

from aplens.patterns.collect import (
    AttentionPatterns,
    PatternCollector,
    collect_patterns,
    read_layers,
    stream_patterns,
)
from aplens.patterns.cropping import crop_patches, depth_scales
from aplens.patterns.normalize import log_normalize, smallest_log
from aplens.patterns.patches import PatchGrid
from aplens.patterns.templates import (
    DETECTED,
    MIXED,
    MIXED_BELOW,
    TEMPLATES,
    name_templates,
    template_scores,
    template_strengths,
)

__all__ = [
    "DETECTED",
    "MIXED",
    "MIXED_BELOW",
    "TEMPLATES",
    "AttentionPatterns",
    "PatchGrid",
    "PatternCollector",
    "collect_patterns",
    "crop_patches",
    "depth_scales",
    "log_normalize",
    "name_templates",
    "read_layers",
    "smallest_log",
    "stream_patterns",
    "template_scores",
    "template_strengths",
]
