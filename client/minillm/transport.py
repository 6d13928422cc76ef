"""HTTP with retries: one place decides what may be sent twice."""

from __future__ import annotations

import contextlib
import email.utils
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import tenacity

from minillm.errors import ApiError, Unreachable
from minillm.version import VERSION

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_RETRIES = 4
LONGEST_WAIT_SECONDS = 60.0
"""Where the service asks for more patience than this, its answer is raised at once."""
_RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


class _Retry(Exception):
    """The request may be sent again. Carries what to raise when it may not any more."""

    def __init__(self, final: Exception, wait: float | None = None) -> None:
        self.final = final
        self.wait = wait


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), which is a number of them or a date; None without one."""
    given = response.headers.get("retry-after")
    if given is None:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _may_be_repeated(problem: ApiError, response: httpx.Response, safe: bool) -> bool:
    """Whether the service would have the same request again: it says so, or else the status does."""
    if response.headers.get("x-should-retry") == "false":
        return False
    wanted = problem.retryable if problem.retryable is not None else problem.status in _RETRYABLE_STATUS
    # 429 refuses before anything is done, so it is safe for every method.
    return wanted and (safe or problem.status == httpx.codes.TOO_MANY_REQUESTS)


_backoff = tenacity.wait_random_exponential(multiplier=0.4, max=10.0)


def _wait(state: tenacity.RetryCallState) -> float:
    """The server's Retry-After where it gave one, else exponential and random."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Retry) and error.wait is not None:
        return error.wait
    return float(_backoff(state))


class Transport:
    """A thin layer over `httpx.Client`.

    A request is sent again when the connection could not be made at all, and, if it is idempotent, also when it
    broke or the answer says that it is `retryable` (of an answer that says nothing: 408, 429 and most 5xx). Between
    two goes it waits as long as `Retry-After` asks, else a random and growing time. Idempotent are the methods that
    HTTP (RFC 9110, 9.2.2) says are and those that the caller says are, such as a POST with an Idempotency-Key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        key = api_key if api_key is not None else os.environ.get("MINILLM_API_KEY")
        headers = {"User-Agent": f"minillm-client/{VERSION}", "Accept": "application/json, */*;q=0.1"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.base_url = (base_url or os.environ.get("MINILLM_URL") or DEFAULT_URL).rstrip("/")
        try:
            self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout, transport=transport)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Unreachable(f"{self.base_url!r} is not an address: {error}") from error
        self._sleep = sleep or tenacity.nap.sleep
        self._attempts = 1 + (MAX_RETRIES if max_retries is None else max_retries)

    def close(self) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool | None = None,
        headers: Mapping[str, str | None] | None = None,
        **arguments: Any,
    ) -> httpx.Response:
        """The response, 2xx or 304, read. Raises ApiError for any other and Unreachable where none came."""
        return self._retrying(method, path, idempotent=idempotent, headers=headers, whole=True, **arguments)

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool | None = None,
        headers: Mapping[str, str | None] | None = None,
        **arguments: Any,
    ) -> Iterator[httpx.Response]:
        """The response, 2xx or 304, its body not read yet: what breaks while it is read is the caller's to retry."""
        response = self._retrying(method, path, idempotent=idempotent, headers=headers, whole=False, **arguments)
        try:
            yield response
        finally:
            response.close()

    def _retrying(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool | None,
        headers: Mapping[str, str | None] | None,
        whole: bool,
        **arguments: Any,
    ) -> httpx.Response:
        safe = method in _IDEMPOTENT if idempotent is None else idempotent
        sent = {name: value for name, value in (headers or {}).items() if value is not None}
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Retry),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._send, method, path, safe, whole, headers=sent, **arguments)
        except _Retry as error:
            raise error.final from error.__cause__

    def _send(self, method: str, path: str, safe: bool, whole: bool, **arguments: Any) -> httpx.Response:
        try:
            request = self._http.build_request(method, path, **arguments)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unreachable(f"{self.base_url!r} is not an address: {error}") from error
        try:
            response = self._http.send(request, stream=True)
            if whole and response.status_code < 400:
                # Each such answer, 304 as well: what is not read holds its connection for ever.
                response.read()
        except httpx.UnsupportedProtocol as error:
            raise Unreachable(f"{self.base_url!r} is not an http or https address") from error
        except httpx.TransportError as error:
            final = Unreachable(f"no answer from {self.base_url}: {error or type(error).__name__}")
            # ConnectError: not a byte of the request has left, so that any method may be tried again.
            if safe or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
                raise _Retry(final) from error
            raise final from error
        if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
            return response
        try:
            with contextlib.suppress(httpx.TransportError):
                response.read()
            problem = ApiError.of(response) if response.is_stream_consumed else _unread(response)
        finally:
            response.close()
        problem.retry_after = _retry_after(response)
        patient = problem.retry_after is None or problem.retry_after <= LONGEST_WAIT_SECONDS
        if patient and _may_be_repeated(problem, response, safe):
            raise _Retry(problem, problem.retry_after)
        raise problem


def _unread(response: httpx.Response) -> ApiError:
    return ApiError(response.status_code, f"http_{response.status_code}", None, "the reason broke off on its way")
