"""What Prometheus is told of the jobs, read from the store at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from store.db.database import DATABASE_AWAY, Database
from store.jobs.repository import JobRepository
from store.jobs.transitions import TERMINAL, JobState
from store.workers import WorkerRepository

log = logging.getLogger(__name__)


class JobCollector(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[Metric]:
        # Registering must not need a database; the names are known.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("minillm_jobs", "Jobs that are not finished, by state.", labels=["state"])
        online = GaugeMetricFamily("minillm_workers_online", "Workers whose heartbeat is fresh.")
        up = GaugeMetricFamily("minillm_database_up", "Whether the database answered this scrape.")
        try:
            with self._database.read() as session:
                depth = JobRepository(session).depth()
                workers = WorkerRepository(session)
                now = self._database.now(session)
                number = sum(workers.is_online(worker, now) for worker in workers.list(limit=1000))
        except DATABASE_AWAY as error:
            log.warning("no job metrics: %s", error)
            up.add_metric([], 0)
        else:
            for state in JobState:
                if state not in TERMINAL:
                    jobs.add_metric([str(state)], depth.get(state, 0))
            online.add_metric([], number)
            up.add_metric([], 1)
        yield from (jobs, online, up)
