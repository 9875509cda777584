"""From chosen heads to circuits: activation patching and direct path patching of a selection.

Activations are patched by TransformerLens itself (`transformer_lens.patching`); what a path carries
is worked out here.
"""

from aplens.circuits.activations import activation_patch
from aplens.circuits.metrics import logit_difference
from aplens.circuits.paths import path_patch
from aplens.circuits.table import PatchingTable

__all__ = ["PatchingTable", "activation_patch", "logit_difference", "path_patch"]
