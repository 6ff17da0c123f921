"""ServerClient: one request to /v1/embeddings, asked again while its faults are passing ones."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.config import split_urls
from ..errors import ConfigError, RemoteError, needs
from ..handle import Held
from .answers import NOT_FINITE, TOO_LONG, Answer, parse_answer, server_message

if TYPE_CHECKING:
    import httpx

Inputs = Sequence[str] | Sequence[Sequence[int]]

NO_KEY = "EMPTY"  # what clients of servers without keys send, by vLLM's and SGLang's convention
PASSING = {408, 429, 500, 502, 503, 504}
CONNECT_S = 10.0
DOWN_S = 10.0  # how long a server that took no connection is asked last
MAX_WAIT_S = 10.0  # between two attempts, unless the server says how long


@dataclass
class _Endpoint:
    """One of the servers."""

    base_url: str
    takes_base64: bool = True
    down_until: float = 0.0


class ServerClient(Held):
    """Asks an OpenAI-compatible server for vectors, exactly as it is told to.

    `base_url` ends as the server's documentation says, mostly in "/v1"; of several, given as a
    list or with commas, each is asked in turn, and one that fails is passed over. `api_key_env`
    names the environment variable that holds the key. While a server is busy (429, for as long as
    its Retry-After says), unreachable or answers 5xx it is asked again for `retry_s` seconds. May
    be used from any thread. Raises ConfigError, MissingDependencyError.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        model: str,
        api_key: str | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        retry_s: float = 60.0,
        max_connections: int = 32,
    ) -> None:
        with needs("httpx", extra="remote"):
            import httpx

        if timeout_s <= 0 or retry_s < 0:
            raise ConfigError(
                f"timeout_s is {timeout_s}, retry_s is {retry_s}; give seconds, more than 0 and 0 "
                "or more"
            )
        self.base_urls = split_urls(base_url)
        self.model = model
        self._retry_s = retry_s
        self._endpoints = [_Endpoint(url) for url in self.base_urls]
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self.num_requests = 0  # sent so far
        self.num_retries = 0  # times that every server failed and was asked again
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {find_key(api_key, api_key_env)}"},
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=max_connections),
        )
        # A client nobody holds any more closes its connections; so does one held until the end.
        weakref.finalize(self, self._http.close)

    def embed(self, inputs: Inputs, *, fields: Mapping[str, Any] | None = None) -> Answer:
        """Return one vector per input, (N, W) float32, as the server sent them.

        Inputs are strings, or lists of token ids where the server takes those. They go out in one
        request, with `fields` beside them (`{"dimensions": 256}`). Vectors come as bytes where the
        server can, else as numbers; a null is NaN. Nothing is normalised, cut or judged, but that
        every input has one vector. Raises RemoteError with the server's words, its URL and status.
        """
        import stamina

        if not inputs:
            return Answer(np.empty((0, 0), np.float32), 0)
        rows = [one if isinstance(one, str) else [int(i) for i in one] for one in inputs]
        body = {"model": self.model, "input": rows, **(fields or {})}
        retrying = stamina.RetryingCaller(
            attempts=None if self._retry_s else 1,
            timeout=self._retry_s or None,
            wait_max=MAX_WAIT_S,
            wait_jitter=0.5,
        )
        return retrying(self._backoff, self._ask, body, len(rows))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __repr__(self) -> str:
        return f"ServerClient({', '.join(self.base_urls)!r}, model={self.model!r})"

    def _backoff(self, error: Exception) -> bool | float:
        """Return whether to ask again, or after how many seconds."""
        if not isinstance(error, RemoteError) or not is_passing(error):
            return False
        with self._lock:
            self.num_retries += 1
        return True if error.retry_after_s is None else min(error.retry_after_s, self._retry_s)

    def _ask(self, body: dict[str, Any], num_inputs: int) -> Answer:
        """Return the answer of the first server that gives one; another is first each time."""
        first = next(self._turns) % len(self._endpoints)
        turned = self._endpoints[first:] + self._endpoints[:first]
        now = time.monotonic()
        failures: list[RemoteError] = []
        for endpoint in sorted(turned, key=lambda one: one.down_until > now):
            try:
                return parse_answer(self._post(endpoint, body), num_inputs, endpoint.base_url)
            except RemoteError as error:
                if not is_passing(error):
                    raise
                failures.append(error)
        raise failures[0]

    def _post(self, endpoint: _Endpoint, body: dict[str, Any]) -> bytes:
        """Return the body of a server's answer; numbers are asked for where bytes are refused."""
        encoding_format = "base64" if endpoint.takes_base64 else "float"
        response = self._send(endpoint, {"encoding_format": encoding_format, **body})
        is_refused = response.status_code in {400, 415, 422} and endpoint.takes_base64
        if is_refused and re.search("encoding_format|base64", response.text):
            endpoint.takes_base64 = False
            response = self._send(endpoint, {"encoding_format": "float", **body})
        if response.status_code != 200:
            raise _failure(response, endpoint.base_url)
        return response.content

    def _send(
        self, endpoint: _Endpoint, body: dict[str, Any], *, is_second: bool = False
    ) -> httpx.Response:
        import httpx

        url = f"{endpoint.base_url}/embeddings"
        content = json.dumps(body, ensure_ascii=False).encode()
        with self._lock:
            self.num_requests += 1
        try:
            return self._http.post(
                url, content=content, headers={"Content-Type": "application/json"}
            )
        except httpx.RequestError as error:
            # A kept connection may be closed by the server just as it is used again: no fault.
            stale = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
            if isinstance(error, stale) and not is_second:
                return self._send(endpoint, body, is_second=True)
            if not isinstance(error, httpx.ReadTimeout):
                endpoint.down_until = time.monotonic() + DOWN_S
            raise RemoteError(
                f"{url} cannot be reached ({type(error).__name__}: {error}); start the server, "
                "or mend base_url",
                url=endpoint.base_url,
            ) from error


def is_passing(error: RemoteError) -> bool:
    """Whether the same request may be answered later."""
    if error.status == 500 and is_of_a_text(error):  # llama.cpp's status for a text too long
        return False
    return error.status is None or error.status in PASSING


def is_of_a_text(error: RemoteError) -> bool:
    """Whether a server says that a text is too long, or that its vector is not finite."""
    return bool(TOO_LONG.search(str(error)) or NOT_FINITE.search(str(error)))


def find_key(api_key: str | None, api_key_env: str | None) -> str:
    """Return the key, of the environment only where a variable is named."""
    if api_key_env is None:
        return NO_KEY if api_key is None else api_key
    if api_key is not None:
        raise ConfigError("give either api_key or api_key_env, not both")
    if key := os.environ.get(api_key_env):
        return key
    raise ConfigError(
        f"api_key_env is {api_key_env!r}, an environment variable that is not set; set it to the "
        "server's key"
    )


def _failure(response: httpx.Response, base_url: str) -> RemoteError:
    status = response.status_code
    hint = {
        401: "; give the server's key by api_key or api_key_env",
        403: "; give the server's key by api_key or api_key_env",
        404: "; check model, and whether base_url must end in /v1",
    }.get(status, "")
    said = server_message(response.text)
    retry_after = response.headers.get("Retry-After", "")
    return RemoteError(
        f"{base_url} answered {status}: {said}{hint}",
        url=base_url,
        status=status,
        retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
    )
