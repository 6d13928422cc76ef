"""Wake-ups reach a live broker, and a dead or frozen one costs a request a bounded time."""

from __future__ import annotations

import base64
import json
import signal
import tempfile
import time
from pathlib import Path

import pytest
import redis

from store.broker import CPU_QUEUE, GPU_QUEUE, make_celery, wake
from store.settings import Settings
from tests import services


def test_message_is_json_with_the_job_id_alone(valkey_url: str, tmp_path: Path) -> None:
    app = make_celery(Settings(broker_url=valkey_url, data_dir=tmp_path))
    client = redis.Redis(unix_socket_path=valkey_url.removeprefix("redis+socket://"))
    client.delete(GPU_QUEUE, CPU_QUEUE)
    assert wake(app, "job_x")
    assert wake(app, "job_y", gpus=0)
    (raw,) = client.lrange(GPU_QUEUE, 0, -1)
    assert client.llen(CPU_QUEUE) == 1
    message = json.loads(raw)
    assert message["content-type"] == "application/json"
    assert json.loads(base64.b64decode(message["body"]))[0] == ["job_x"]
    assert message["headers"]["eta"] is None


def test_settings_the_design_depends_on(tmp_path: Path) -> None:
    conf = make_celery(Settings(data_dir=tmp_path)).conf
    assert (conf.task_acks_late, conf.worker_disable_prefetch, conf.worker_concurrency) == (False, True, 1)
    assert (list(conf.accept_content), conf.task_ignore_result, conf.result_backend) == (["json"], True, None)


def test_a_fault_of_ours_is_none_of_the_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="MINILLM_BROKER_URL"):
        make_celery(Settings(broker_url="carrier-pigeon://127.0.0.1", data_dir=tmp_path))
    app = make_celery(Settings(broker_url=f"redis+socket://{tmp_path}/none.sock", data_dir=tmp_path))

    def missing(*_: object, **__: object) -> None:
        raise ImportError("No module named 'redis'")

    monkeypatch.setattr(app, "send_task", missing)
    with pytest.raises(ImportError):
        wake(app, "job_x")
    monkeypatch.setattr("kombu.transport.redis.redis", None)
    with pytest.raises(ImportError, match="redis"):
        make_celery(Settings(data_dir=tmp_path))


def test_broker_that_is_not_there(tmp_path: Path) -> None:
    app = make_celery(Settings(broker_url=f"redis+socket://{tmp_path}/none.sock", data_dir=tmp_path))
    started = time.monotonic()
    assert not wake(app, "job_x")
    assert time.monotonic() - started < 5


def test_broker_that_freezes_and_comes_back(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="mv-") as folder:
        process, url = services.start_valkey(Path(folder))
        services.USED.add("valkey")
        try:
            app = make_celery(Settings(broker_url=url, data_dir=tmp_path))
            assert wake(app, "job_x")
            process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            assert not wake(app, "job_x")
            assert time.monotonic() - started < 10
            process.kill()
            process.wait(10)
            assert not wake(app, "job_x")
            process, url = services.start_valkey(Path(folder))
            assert wake(app, "job_x")
        finally:
            process.kill()
            process.wait(10)
