"""The embedded server: our drain endpoint and Simvue's REST dialect over one store.

`create_app` makes the aiohttp application, `serve` runs it in the foreground, `issue_token` makes a token for a user.
"""

from .app import create_app
from .identity import issue_token
from .serving import serve

__all__ = ["create_app", "serve", "issue_token"]
