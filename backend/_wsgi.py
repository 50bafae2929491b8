"""What `label-studio-ml start` runs and WSGI servers import (`backend._wsgi:app`); see `backend.plugin_server`."""

import os
import sys
from typing import Any

if __name__ == "__main__":
    # Python looks beside a script first, and would take backend/queue.py for its own `queue`.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it."""
    if name == "app":
        from backend.plugin_server import make_app

        made = globals()["app"] = make_app()
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    from backend.plugin_server import main

    sys.exit(main())
