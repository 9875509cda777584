"""Views for notebooks and pages: what runs a model to show something."""

from aplens.views.cards import HeadCards, describe_heads
from aplens.views.circuitsvis_view import show_in_circuitsvis
from aplens.views.clusters_view import show_clusters
from aplens.views.embed import View
from aplens.views.head_map import HeadMap, map_heads
from aplens.views.heads_view import show_heads

__all__ = [
    "HeadCards",
    "HeadMap",
    "View",
    "describe_heads",
    "map_heads",
    "show_clusters",
    "show_heads",
    "show_in_circuitsvis",
]
