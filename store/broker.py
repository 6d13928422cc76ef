"""The broker carries wake-ups, never truth: a message is a job id, and losing one costs latency alone."""

from __future__ import annotations

import logging

import redis
from celery import Celery
from kombu.exceptions import KombuError

from store.settings import Settings

RUN_TASK = "minillm.run"
QUEUE = "minillm"

BROKER_ERRORS = (KombuError, redis.RedisError, OSError)
"""What a broker that is away, full or misconfigured raises; anything else is a fault of ours."""

logger = logging.getLogger(__name__)


def make_celery(settings: Settings) -> Celery:
    """The Celery app of api and worker, with every broker setting that the design depends on.

    Raises ValueError for a URL of a kind that is not known, and ImportError where its library is missing.
    """
    app = Celery("minillm", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        # JSON alone: whoever can write to the broker can name a job, not run code.
        task_serializer="json",
        accept_content=["json"],
        # Early acknowledgement: with late ones Redis delivers a long task again while it still runs.
        task_acks_late=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        task_ignore_result=True,
        result_backend=None,
        enable_utc=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker waits for its broker for ever, polling the database meanwhile
        broker_connection_timeout=2,
        broker_transport_options={
            "socket_connect_timeout": 2,
            "socket_timeout": 3,
            "socket_keepalive": True,
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.2,
        },
        task_publish_retry=False,
    )
    try:
        with app.connection_for_write() as connection:
            _ = connection.transport  # made, not connected
    except KeyError as error:
        raise ValueError(f"MINILLM_BROKER_URL: {error.args[0]}") from None
    return app


def wake(celery: Celery, job_id: str) -> bool:
    """Announce a queued job; call it after the commit. False says that the broker did not take it."""
    try:
        celery.send_task(RUN_TASK, args=[job_id], ignore_result=True, retry=False)
    except BROKER_ERRORS as error:  # polling workers and the next sweep make up for it
        logger.warning("no wake-up for %s: %s: %s", job_id, type(error).__name__, error)
        return False
    return True
