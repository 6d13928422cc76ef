from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from store.settings import Settings


def test_defaults_hang_on_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/minillm.db"
    assert settings.models_dir == tmp_path / "models"
    assert settings.runs.attempt("job_x", 2).path == tmp_path / "runs" / "job_x" / "2"


def test_reads_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINILLM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MINILLM_LEASE_SECONDS", "60")
    assert Settings().lease_seconds == 60


@pytest.mark.parametrize("secret", ["changeme", "short", "password"])
def test_refuses_weak_secrets(secret: str) -> None:
    with pytest.raises(ValidationError, match="known default or shorter"):
        Settings(secret_key=secret)  # type: ignore[arg-type]


def test_refuses_a_lease_that_one_late_beat_loses() -> None:
    with pytest.raises(ValidationError, match="at least twice"):
        Settings(lease_seconds=5, heartbeat_seconds=5)


def test_bind_beyond_the_loopback(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        Settings(data_dir=tmp_path, host=host).check_bind(has_keys=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ValueError, match="MINILLM_SECRET_KEY"):
            Settings(data_dir=tmp_path, host=host).check_bind(has_keys=True)
    settings = Settings(data_dir=tmp_path, host="0.0.0.0", secret_key="x" * 32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="API key"):
        settings.check_bind(has_keys=False)
    settings.check_bind(has_keys=True)


def test_made_secret_is_kept_and_private(tmp_path: Path) -> None:
    first = Settings(data_dir=tmp_path).secret()
    assert len(first) >= 32 and Settings(data_dir=tmp_path).secret() == first
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
