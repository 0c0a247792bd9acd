"""The command `bge`.

- `app.py`: the commands and their options
- `cache.py`: `bge cache`
- `models.py`, `information.py`: what `bge models` and `bge info` print
- `wording.py`: errors that speak of settings, put into a command's options
"""

from bge_integrations.cli.app import app, main

__all__ = ["app", "main"]
