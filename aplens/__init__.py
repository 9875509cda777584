"""aplens: which attention heads matter, and what they do. A TransformerLens plugin.

Names are imported on first use, so `import aplens` costs next to nothing. They stand in
`__init__.pyi`, once for Python, type checkers and the reference.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
