"""lorax: low-rank adaptation variants, exact and compared fairly.

The public names load on first use (PEP 562), so that `import lorax`, `--help` and a
configuration error never wait for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Adapters": "lorax.adapters.install",
    "Factors": "lorax.adapters.factors",
    "RunRecord": "lorax.records.record",
    "UserError": "lorax.errors",
    "attach": "lorax.api",
    "load": "lorax.api",
    "names": "lorax.initializers.registry",
    "register": "lorax.initializers.registry",
}
__all__ = sorted(_WHERE)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lorax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
