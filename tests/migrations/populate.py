"""Rows of every table, made by the store itself: jobs in all ways of ending, and what they name and leave."""

from __future__ import annotations

import datetime as dt

from minillm_core.spec import MessageEvent
from minillm_core.spec.model_folder import Inspection
from store.api_keys import KeyRepository
from store.bytes.model_folders import FoundFolder
from store.db.clock import database_now
from store.db.database import Database
from store.db.ids import new_id
from store.files import FileRepository
from store.idempotency import IdempotencyRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.leases import claim, finish, record
from store.jobs.repository import JobRepository
from store.models import ModelRepository
from store.workers import WorkerRepository
from tests.store import scenes

OWNERS = ("usr_one", "usr_two")


def populate(database: Database) -> None:
    """Two owners' files and keys, a base model and a student, six jobs from queued to succeeded, one of them a fork."""
    with database.write() as session:
        keys = KeyRepository(session, b"a secret of sixteen bytes or more")
        for owner in OWNERS:
            keys.create(owner_id=owner, name=f"{owner}'s key", scopes=["admin"], expires_at=None)
        files = {
            owner: [
                FileRepository(session)
                .create(
                    id=new_id("file"),
                    owner_id=owner,
                    filename=f"{purpose} äöü 'quoted'.jsonl",
                    purpose=purpose,
                    bytes=10,
                    sha256="e" * 64,
                    lines=2,
                    expires_at=database_now(session) + dt.timedelta(days=36500),
                )
                .id
                for purpose in ("dataset", "corpus", "calibration")
            ]
            for owner in OWNERS
        }
        ModelRepository(session).update_folders([FoundFolder("teacher", "base", Inspection(scenes.DESCRIPTION))])
        workers = WorkerRepository(session)
        devices = {"cpus": 2, "gpus": [{"index": "0", "memory": 16 << 30}, {"index": "1", "memory": 16 << 30}]}
        worker = workers.register(host="host", pid=2, heartbeat_seconds=5.0, devices=devices).id
        workers.stop(workers.register(host="host", pid=1, heartbeat_seconds=5.0).id)
        once = {"owner_id": OWNERS[0], "method": "POST", "path": "/v1/jobs", "key": "once"}
        IdempotencyRepository(session).begin(**once, fingerprint="f" * 64)
        IdempotencyRepository(session).complete(**once, status=201, body='{"object": "job"}')

    def make(owner: str, **changes: object) -> str:
        dataset, corpus, calibration = files[owner]
        spec = {
            "name": "a job",
            "metadata": {"team": "search"},
            "dataset": {"file": dataset},
            "pretrain_corpus": {"file": corpus},
            "method": {"type": "minillm"},
            "evaluation": {"calibration_file": calibration},
            **changes,
        }
        return scenes.make_job(database, owner=owner, **spec)

    def run(job_id: str, *ending: object) -> None:
        with database.write() as session:
            taken = claim(session, worker, "host", 1, 3.15e9, job_id)
            assert taken is not None
            record(
                session,
                taken,
                [
                    scenes.phase(1),
                    scenes.progress(2, 5),
                    scenes.metrics(3, 5, loss=1.5, reverse_kl=0.25),
                    scenes.checkpoint(4, 5, metrics={"rouge_l": 12.5}, best=True),
                    MessageEvent(seq=5, time=scenes.TIME, code="note", message="äöü 'quoted'", data={"a": [1, None]}),
                    scenes.student(6),
                ],
            )
            for outcome in ending:
                finish(session, taken, outcome)  # type: ignore[arg-type]

    succeeded = make(OWNERS[0])
    run(succeeded, scenes.success())
    retried = make(OWNERS[0], scheduling={"max_runtime_seconds": 3600, "priority": 5})
    run(retried, scenes.failure(log=b"out\nof\nmemory\n"))
    run(make(OWNERS[1]), scenes.failure("user", "dataset_invalid", log=b"row 7\n"))
    run(make(OWNERS[1]))  # held to this day
    paused = make(OWNERS[1], student={"prune_teacher": {"layers": 2}})
    with database.write() as session:
        jobs = JobRepository(session)
        jobs.request_pause(jobs.get(OWNERS[1], paused))
        checkpoints = CheckpointRepository(session)
        (checkpoint,) = checkpoints.list(jobs.get(OWNERS[0], succeeded)).items
        checkpoints.set_pinned(checkpoint, True)
        student = ModelRepository(session).list(OWNERS[0], kind="student").items[0].id
        spec = scenes.make_spec(teacher={"model": student}, dataset={"file": files[OWNERS[0]][0]})
        jobs.create(owner_id=OWNERS[0], spec=spec, forked_from=checkpoint)
