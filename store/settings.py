"""The one settings class, read from the environment with the prefix ``MINILLM_``."""

from __future__ import annotations

import difflib
import functools
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from store.bytes.runs import Runs

_WEAK_SECRETS = frozenset({"changeme", "change-me", "secret", "password", "minillm", "default", "insecure"})
_SHORTEST_SECRET = 16
_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PREFIX = "MINILLM_"
_OF_OTHERS = frozenset(
    f"{_PREFIX}{name}"
    # The client's, the worker's own for its children, and those of docker-compose.yml.
    for name in ("URL", "API_KEY", "ATTEMPT", "LIFELINE_FD", "DOORBELL", "BIND", "PUBLISHED_PORT", "MODELS")
)
"""Variables with our prefix that are not settings of the service."""


class Settings(BaseSettings):
    """Settings of api, worker and sweeper alike. Every field is ``MINILLM_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", use_attribute_docstrings=True)

    data_dir: Path = Path("data")
    """Folder of everything the service keeps outside its database: files, models, runs."""
    models_root: Path | None = None
    """Folder that `path:` references of a spec are looked up in; `<data_dir>/models` when unset."""
    database_url: str = ""
    """SQLAlchemy URL, SQLite or PostgreSQL; `<data_dir>/minillm.db` when unset."""
    broker_url: str = "redis://127.0.0.1:6379/0"
    """Redis or Valkey: `redis://`, `rediss://` or `redis+socket://<path>`. Only wake-ups go through it."""

    host: str = "127.0.0.1"
    """Address the API listens on. Beyond the loopback it needs `secret_key` and an API key."""
    port: int = Field(8000, ge=0, le=65535)
    """Port the API listens on; 0 takes a free one."""
    services_port: int | None = Field(None, ge=1, le=65535)
    """Port at `host` where `python -m worker.services` tells Prometheus what it does; none when unset."""
    secret_key: SecretStr | None = None
    """Keys the HMAC of API keys; made once and kept in `<data_dir>/secret.key` when unset."""
    bootstrap_api_key: SecretStr | None = None
    """An admin API key that is valid while it is set; at least 16 characters."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names, separated by commas, that a request's Host may have beside those of the loopback; `*.example.org` for all
    names below one. Where it is unset, any may be used with a key and none without."""
    max_file_bytes: int = Field(512 * 1024 * 1024, ge=1)
    """Largest uploaded file."""
    threads: int = Field(32, ge=2, le=1000)
    """Requests that the API works on at a time, each with a thread and a database connection; half may write."""
    request_timeout_seconds: float = Field(30.0, gt=0)
    """A request whose head is not complete after so long is ended; its body, where it hardly arrives any more."""
    pool_timeout_seconds: float = Field(5.0, gt=0)
    """Longest wait of a request for a database connection before it is answered with 503."""

    max_queued_jobs: int = Field(500, ge=0)
    """Queued jobs that one owner may have; more are refused with 429. 0: no limit."""
    max_running_jobs: int = Field(0, ge=0)
    """Jobs of one owner that workers run at a time; further ones wait in the queue. 0: no limit."""
    max_stored_bytes: int = Field(0, ge=0)
    """Size of one owner's files, checkpoints and students from which on uploads and new work are refused with 429.
    0: no limit."""

    lease_seconds: float = Field(30.0, gt=0)
    """A holder that has not renewed for so long has lost its job."""
    heartbeat_seconds: float = Field(5.0, gt=0)
    """Time between renewals of a lease and between heartbeats of a worker."""
    poll_seconds: float = Field(2.0, gt=0)
    """Time between a worker's own looks for work: what a dead broker costs."""
    sweep_seconds: float = Field(2.0, gt=0)
    """Time between sweeps."""
    wake_seconds: float = Field(15.0, gt=0)
    """A queued job is announced again after so long without being claimed."""
    stop_grace_seconds: float = Field(30.0, ge=0)
    """Time between SIGTERM and SIGKILL for a trainer, in which it writes its checkpoint."""
    cancel_grace_seconds: float = Field(90.0, ge=0)
    """A job still `cancelling` after so long is taken from its holder and `cancelled`."""
    retry_base_seconds: float = Field(5.0, ge=0)
    """Wait before the first automatic retry; it doubles with each further one."""
    retry_max_seconds: float = Field(300.0, ge=0)
    """Longest wait before an automatic retry."""
    max_stalled_attempts: int = Field(3, ge=1)
    """So many infrastructure failures in a row without progress past the furthest point end a job."""
    start_watchdog_seconds: float = Field(1800.0, gt=0)
    """Longest silence of a trainer before its first step (loading, compiling) before it counts as hung."""
    progress_watchdog_seconds: float = Field(900.0, gt=0)
    """Longest time without any new progress, metric or phase while training before it counts as hung."""
    min_free_bytes: int = Field(256 * 1024 * 1024, ge=0)
    """Free disk space under which no job is created or started."""

    gpus: str | None = None
    """Accelerators of this worker, as CUDA_VISIBLE_DEVICES names them ("0,1"); every visible one when unset."""

    hub_enabled: bool = True
    """Whether `hub:` references are accepted at all."""
    hub_offline: bool = False
    """Whether the trainer may only use hub models that are in its cache."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_format: Literal["console", "json"] = "console"
    """`json` for one JSON object a line, `console` for people."""

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @field_validator("secret_key", "bootstrap_api_key")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        text = value.get_secret_value()
        if text.lower() in _WEAK_SECRETS or len(text) < _SHORTEST_SECRET:
            raise ValueError(f"is a known default or shorter than {_SHORTEST_SECRET} characters")
        return value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name.strip("[]").lower().removesuffix(".") for name in value]
        for name in names:
            if not _HOST_NAME.fullmatch(name) and not _is_address(name):
                raise ValueError(f"{name!r} is no host name or address (without scheme and port)")
        return tuple(names)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @model_validator(mode="after")
    def _nothing_misspelt(self) -> Settings:
        if unknown := unknown_variables(os.environ):
            raise ValueError("; ".join(unknown))
        return self

    @model_validator(mode="after")
    def _derive(self) -> Settings:
        if not self.database_url:
            self.database_url = f"sqlite:///{self.data_dir / 'minillm.db'}"
        if self.models_root is None:
            self.models_root = self.data_dir / "models"
        self.models_root = self.models_root.expanduser().resolve()
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("lease_seconds must be at least twice heartbeat_seconds, or one late beat loses a job")
        return self

    @property
    def models_dir(self) -> Path:
        """Folder of `path:` models; never None, unlike the raw setting."""
        return self.models_root if self.models_root is not None else self.data_dir / "models"

    @property
    def files_dir(self) -> Path:
        return self.data_dir / "files"

    @property
    def runs(self) -> Runs:
        """Where runs leave what they leave."""
        return Runs(self.data_dir)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the API."""
        if self.host == "localhost":
            return True
        return _is_address(self.host) and ipaddress.ip_address(self.host).is_loopback

    def check_bind(self, *, has_keys: bool) -> None:
        """Raise ValueError where the API would be reachable from elsewhere without keys or with a made-up secret.

        ``has_keys`` says whether any usable API key exists, the bootstrap key included.
        """
        if self.is_loopback:
            return
        if self.secret_key is None:
            raise ValueError(f"MINILLM_SECRET_KEY must be set to listen on {self.host}, which is not the loopback")
        if not has_keys:
            raise ValueError(
                f"listening on {self.host}, which is not the loopback, needs an API key: "
                "set MINILLM_BOOTSTRAP_API_KEY, or make one with `python -m api keys create --admin`"
            )

    def secret(self) -> bytes:
        """The key of every HMAC: `secret_key`, or the one kept in ``<data_dir>/secret.key`` (made here, mode 0600)."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value().encode()
        path = self.data_dir / "secret.key"
        if not path.exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"secret.key.{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(fresh, path)  # the first of several processes wins and the others read its key
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_bytes()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A sentence for each name that has our prefix and that nothing reads, with the nearest that something does."""
    known = sorted(name.upper() for name in Settings.model_fields)
    told = []
    for name in sorted(names):
        ours = name.upper().removeprefix(_PREFIX)
        if not name.upper().startswith(_PREFIX) or ours in known or f"{_PREFIX}{ours}" in _OF_OTHERS:
            continue
        near = difflib.get_close_matches(ours, known, n=1)
        told.append(f"{name} is not a setting" + (f": is it {_PREFIX}{near[0]}?" if near else ", see docs/settings.md"))
    return told


@functools.cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
