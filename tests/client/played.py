"""A served API whose worker is the test itself, through the store."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillm import Client
from minillm.specfile import read_spec
from minillm_core.spec import MANIFEST_FILE, STUDENT_DIR, Failure, FailureCategory, Manifest, ManifestFile, parse_event
from minillm_core.spec.model_folder import inspect_model
from store.db.database import Database
from store.jobs.endings import Outcome, Student
from store.jobs.leases import Claim, claim, finish, record
from store.settings import Settings
from store.workers import WorkerRepository

SPEC = """
name: smol
seed: 7
teacher: {model: "path:teacher"}
student: {prune_teacher: {layers: 2}}
dataset: {file: rows.jsonl, template: plain}
method: {type: minillm, rollouts_per_round: 8}
training: {max_steps: 20, rows_per_step: 4, learning_rate: 5e-6, max_prompt_tokens: 16, max_new_tokens: 16}
"""


@dataclass
class Service:
    """A served API, its store and a folder with a spec to submit."""

    url: str
    settings: Settings
    database: Database
    spec: Path

    def client(self) -> Client:
        return Client(self.url)

    def submit(self) -> str:
        with self.client() as client:
            file = client.upload_file(self.spec.parent / "rows.jsonl")
            spec = read_spec(self.spec)
            spec["dataset"]["file"] = file.id
            return client.create_job(spec).id

    def worker(self) -> str:
        with self.database.write() as session:
            return WorkerRepository(session).register(host="host", pid=1, heartbeat_seconds=3600.0).id

    def claim(self) -> Claim:
        with self.database.write() as session:
            taken = claim(session, "wrk_test", "host", 1, 60.0)
        assert taken is not None
        return taken

    def say(self, taken: Claim, *events: dict[str, Any]) -> None:
        lines = [{"time": datetime.now(UTC).isoformat(), **event} for event in events]
        with self.database.write() as session:
            record(session, taken, [parse_event(json.dumps(line)) for line in lines])

    def train(self, taken: Claim) -> None:
        """The first steps of an attempt."""
        progress = {"step": 5, "total_steps": 20, "fraction": 0.25, "tokens_per_second": 900.0, "seconds_left": 60.0}
        values = {"loss": 1.25, "reverse_kl": 0.5, "dev_rouge_l": 30.0}
        self.say(
            taken,
            {"seq": 1, "type": "phase", "phase": "training"},
            {"seq": 2, "type": "progress", "phase": "training", **progress},
            {"seq": 3, "type": "metrics", "phase": "training", "step": 5, "values": values},
        )

    def checkpoint(self, taken: Claim) -> None:
        fields = {"path": "checkpoints/training-5", "bytes": 10, "manifest_sha256": "a" * 64}
        self.say(taken, {"seq": 5, "type": "checkpoint", "phase": "training", "step": 5, **fields})

    def succeed(self, taken: Claim) -> Path:
        """Export a student and end the attempt as a worker does."""
        run = self.settings.runs.attempt(taken.job_id, taken.attempt).path
        folder = run / STUDENT_DIR
        run.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.settings.models_dir / "teacher", folder)
        files = [
            ManifestFile(
                name=path.name, bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in sorted(folder.iterdir())
        ]
        manifest = Manifest(kind="student", created_at="2026-01-01T00:00:00Z", files=files).dumps()
        (folder / MANIFEST_FILE).write_bytes(manifest)
        report = {"before": {"rouge_l": 20.0}, "after": {"rouge_l": 31.5}, "steps": 20}
        event = {
            "seq": 6,
            "type": "student",
            "path": STUDENT_DIR,
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
            "bytes": sum(file.bytes for file in files),
            "parameters": 10,
            "teacher_parameters": 20,
            "report": report,
        }
        self.say(taken, event)
        with self.database.write() as session:
            finish(
                session,
                taken,
                Outcome.succeeded(Student(manifest=manifest, description=inspect_model(folder).description)),
            )
        return folder

    def fail(self, taken: Claim) -> None:
        failure = Failure(code="dataset_invalid", category=FailureCategory.USER, message="every prompt is too long")
        with self.database.write() as session:
            finish(session, taken, Outcome.failed(failure, exit_code=64, log=b"Traceback: the end\n"))
