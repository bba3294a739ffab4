"""A typed client of the gateway's native calls, for users' own programs and for the `generate` and `edit` commands.

    async with Client("http://127.0.0.1:8080", key) as client:
        picture = await client.generate("a lighthouse at dawn", seed=7)

There is one client, and it is async: many pictures at once are what a client of a slow, paid service is used for, and a
synchronous twin would be a second implementation of the rule about money. A script without an event loop wraps its
calls in one function and calls `asyncio.run`. It shares nothing with the gateway's inside; it knows the wire only.
"""

from app.client.answers import Cost, Picture, Safety, StoredPicture
from app.client.client import IMAGE_ID, Client
from app.client.failures import Charged, GatewayFailure, GatewayRefused, GatewayUnreachable

__all__ = [
    "IMAGE_ID",
    "Charged",
    "Client",
    "Cost",
    "GatewayFailure",
    "GatewayRefused",
    "GatewayUnreachable",
    "Picture",
    "Safety",
    "StoredPicture",
]
