"""What those need who run a service: workers, keys, health."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from minillm.api.requests import Pages, Requests, query, segment
from minillm.types import ApiKey, Health, NewApiKey, Readiness, Worker


class OperationMethods(Requests):
    def workers(self, *, include_stopped: bool = False) -> list[Worker]:
        """Workers, newest first; `include_stopped` adds those that have ended."""
        return list(self.iter_workers(include_stopped=include_stopped))

    def iter_workers(self, *, include_stopped: bool = False) -> Pages[Worker]:
        parameters = query(include_stopped="true" if include_stopped else None)
        return self._list(Worker, "/v1/workers", parameters, page_size=None)

    def worker(self, worker_id: str) -> Worker:
        return self._get(Worker, f"/v1/workers/{segment(worker_id)}")

    def drain(self, worker_id: str) -> Worker:
        """The worker checkpoints and hands back its job, and takes no more. Needs the scope `admin`."""
        return self._post(Worker, f"/v1/workers/{segment(worker_id)}/drain", idempotent=True)

    def undrain(self, worker_id: str) -> Worker:
        """A drained worker takes jobs again. Needs the scope `admin`."""
        return self._post(Worker, f"/v1/workers/{segment(worker_id)}/undrain", idempotent=True)

    def create_key(
        self,
        name: str,
        *,
        owner_id: str | None = None,
        scopes: Iterable[str] = (),
        expires_at: datetime | None = None,
    ) -> NewApiKey:
        """A key for `owner_id` (the caller's own when left out). Its `key` is shown this once. Needs `admin`."""
        body = {"name": name, "owner_id": owner_id, "scopes": list(scopes)}
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        return self._post(NewApiKey, "/v1/api_keys", body)

    def keys(self, *, limit: int | None = None) -> list[ApiKey]:
        """Keys, newest first, without the secret part. Needs the scope `admin`."""
        return list(self.iter_keys(limit=limit))

    def iter_keys(self, *, limit: int | None = None) -> Pages[ApiKey]:
        """The same, fetched page by page."""
        return self._list(ApiKey, "/v1/api_keys", limit=limit)

    def key(self, key_id: str) -> ApiKey:
        return self._get(ApiKey, f"/v1/api_keys/{segment(key_id)}")

    def revoke_key(self, key_id: str) -> None:
        """From the next request on the key is refused. Needs the scope `admin`."""
        self._transport.request("DELETE", f"/v1/api_keys/{segment(key_id)}")

    def health(self) -> Health:
        """Whether the process answers."""
        return self._get(Health, "/healthz")

    def readiness(self) -> Readiness:
        """Whether requests can be served. Raises ApiError (503) with the failed checks where they cannot."""
        return self._get(Readiness, "/readyz")

    def prometheus(self) -> str:
        """The service's own metrics in Prometheus' text format."""
        return self._transport.request("GET", "/metrics").text
