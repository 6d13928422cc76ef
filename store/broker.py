"""The broker carries wake-ups, never truth: what a message says decides nothing, and losing one costs latency alone."""

from __future__ import annotations

import logging

import redis
from celery import Celery
from kombu.exceptions import KombuError

from store.settings import Settings

ATTEMPT_TASK = "minillm.attempt"
"""Claims whichever job comes next and runs one attempt of it."""
GPU_QUEUE = "gpu"
CPU_QUEUE = "cpu"
QUEUES = (GPU_QUEUE, CPU_QUEUE)
"""One for each class of devices; a worker listens to all of them unless it is told otherwise (``-Q``)."""

BROKER_ERRORS = (KombuError, redis.RedisError, OSError)
"""What a broker that is away, full or misconfigured raises; anything else is a fault of ours."""

logger = logging.getLogger(__name__)


def make_celery(settings: Settings, kind: type[Celery] = Celery) -> Celery:
    """The Celery app of api and worker, of class `kind`, with every broker setting that the design depends on.

    Raises ValueError for a URL of a kind that is not known, and ImportError where its library is missing.
    """
    app = kind("minillm", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        task_queues={name: {"routing_key": name} for name in QUEUES},
        task_default_queue=GPU_QUEUE,
        task_create_missing_queues=False,
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


def queue_for(gpus: int) -> str:
    """The queue of the workers that suit a job which asks for so many accelerators."""
    return GPU_QUEUE if gpus else CPU_QUEUE


def wake(celery: Celery, job_id: str, *, gpus: int = 1) -> bool:
    """Announce a queued job; call it after the commit. False says that the broker did not take it."""
    try:
        celery.send_task(ATTEMPT_TASK, args=[job_id], queue=queue_for(gpus), ignore_result=True, retry=False)
    except BROKER_ERRORS as error:  # polling workers and the next sweep make up for it
        logger.warning("no wake-up for %s: %s: %s", job_id, type(error).__name__, error)
        return False
    return True
