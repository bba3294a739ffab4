"""Commands that are too large for `app/cli.py`, one module per noun; `cli.py` registers them.

`generate` and `edit` (`pictures.py`) are clients of a gateway, local or not: they read no settings and no Redis.
"""
