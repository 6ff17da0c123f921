"""Who may ask, how much, and for how long: keys and bodies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from .config import ServerConfig
from .problems import ClientGoneError, Refusal


class Keys:
    """The keys that open the server; compared in a time that tells nothing of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, headers: Headers) -> None:
        """Raise a 401 Refusal unless the request carries a key, or none is needed."""
        if not self._digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        challenge = {"WWW-Authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not key:
            raise Refusal(
                401,
                "You didn't provide an API key; send it as: Authorization: Bearer YOUR_KEY",
                headers=challenge,
            )
        digest = hashlib.sha256(key.strip().encode()).digest()
        # All of them, whichever is right: the time must not tell which.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Refusal(
                401, "Incorrect API key provided", code="invalid_api_key", headers=challenge
            )


async def read_body(request: Request, config: ServerConfig) -> bytes:
    """Return the body. Raises Refusal: 415 if not JSON, 413 if too large, 408 if it stalls."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json" and not kind.lower().endswith("+json"):
        raise Refusal(415, f"the body is {kind[:80]!r}; send application/json")
    # The connection ends with these answers: the rest of the body is not waited for.
    closing = {"Connection": "close"}
    too_large = Refusal(
        413, f"the body is larger than {config.max_body_bytes} bytes; divide it", headers=closing
    )
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > config.max_body_bytes:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(config.body_timeout_s):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes > config.max_body_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refusal(
            408, f"the body was not there after {config.body_timeout_s:g} s", headers=closing
        ) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    return b"".join(parts)
