"""What heads do, read off their patterns: no answer is looked at."""

from aplens.describe.description import HeadDescription, TypicalPattern
from aplens.describe.fingerprints import ModelHeads
from aplens.describe.scores import score_heads

__all__ = [
    "HeadDescription",
    "ModelHeads",
    "TypicalPattern",
    "score_heads",
]
