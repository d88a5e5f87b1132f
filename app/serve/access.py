"""Who may ask a server: by their key, and by the web page that they are.

Knows settings and what a request's head says; no connection.
"""

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from app.serve.refusal import RefusalError
from app.serve.server_settings import ServerSettings, is_loopback
from kvcache.errors import short

OPEN_PATH = "/health"


def check(settings: ServerSettings, path: str, headers: Mapping[str, str]) -> None:
    """Raise RefusalError for a web page of elsewhere, or who has not the key."""
    origin = headers.get("Origin")
    if origin and not lets_in(settings, origin):
        raise RefusalError(
            f"web pages of {short(origin)} may not ask: --allow-origin lets them",
            status=HTTPStatus.FORBIDDEN,
        )
    given = headers.get("Authorization", "").removeprefix("Bearer ").encode()
    is_open = path == OPEN_PATH or not settings.key
    if not is_open and not hmac.compare_digest(given, settings.key.encode()):
        raise RefusalError(
            "this server wants its API key, as `Authorization: Bearer KEY`",
            status=HTTPStatus.UNAUTHORIZED,
            code="invalid_api_key",
        )


def lets_in(settings: ServerSettings, origin: str) -> bool:
    """Whether web pages of an origin may ask, and read the answer."""
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or bool({"*", origin} & set(settings.origins))


def for_browsers(settings: ServerSettings, origin: str | None) -> dict[str, str]:
    """Headers of an answer to a page of an origin; `*` would not let it send a key."""
    if not origin or not lets_in(settings, origin):
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Vary": "Origin",
    }
