"""The client: one method for each thing the service does."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from minillm.api.files import FileMethods, ModelMethods
from minillm.api.history import HistoryMethods
from minillm.api.jobs import JobMethods
from minillm.api.operations import OperationMethods
from minillm.api.requests import Pages
from minillm.transport import Transport

__all__ = ["Client", "Pages"]


class Client(JobMethods, HistoryMethods, FileMethods, ModelMethods, OperationMethods):
    """A client of one service; also a context manager that closes its connections.

    `base_url` and `api_key` default to MINILLM_URL (else http://127.0.0.1:8000) and MINILLM_API_KEY. Every method
    raises ApiError where the service refuses and Unreachable where it does not answer. `timeout` is in seconds and
    bounds each wait for the network, not the whole call; `max_retries` is how often a request that may be repeated is
    (4 when left out). `transport` and `sleep` replace the network and the waiting in tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(
            Transport(base_url, api_key, timeout=timeout, max_retries=max_retries, transport=transport, sleep=sleep),
            sleep,
        )

    @property
    def base_url(self) -> str:
        return self._transport.base_url

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
