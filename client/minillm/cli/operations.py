"""Commands for those who run a service: workers and keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from minillm.cli.completion import among, key_ids, worker_ids
from minillm.cli.session import Json, answered, console, emit, listed, service
from minillm.display import duration, say
from minillm.types import ApiKey, Worker

WorkerId = Annotated[str, typer.Argument(metavar="WORKER", help="Id of the worker, wrk_...", autocompletion=worker_ids)]


def workers(
    stopped: Annotated[bool, typer.Option("--stopped", help="Also those that have ended.")] = False,
    as_json: Json = False,
) -> None:
    """List the workers: where they run, what they have, since when they are silent."""
    with service(as_json) as client:
        columns = {
            "ID": lambda worker: worker.id,
            "HOST": lambda worker: worker.host,
            "PID": lambda worker: worker.pid,
            "STATE": _worker_state,
            "SLOTS": lambda worker: worker.slots,
            "GPUS": lambda worker: len(worker.devices.get("gpus") or ()),
            "SEEN": lambda worker: _ago(worker.heartbeat_age_seconds),
            "STARTED": lambda worker: worker.started_at,
        }
        listed(client.iter_workers(include_stopped=stopped), as_json, columns)


def _worker_state(worker: Worker) -> str:
    if worker.stopped_at is not None:
        return "stopped"
    if not worker.online:
        return "silent"
    if worker.draining:
        return "draining"
    return f"refuses jobs: {worker.slot_dirty}" if worker.slot_dirty else "online"


def _ago(seconds: float | None) -> str | None:
    return None if seconds is None else f"{duration(seconds)} ago"


def drain(worker_id: WorkerId, as_json: Json = False) -> None:
    """Let a worker save and hand back its job, and take no more. Needs an administrator's key."""
    with service(as_json) as client:
        answered(client.drain(worker_id), as_json, lambda worker: f"{worker.id} takes no more jobs")


def undrain(worker_id: WorkerId, as_json: Json = False) -> None:
    """Let a drained worker take jobs again. Needs an administrator's key."""
    with service(as_json) as client:
        answered(client.undrain(worker_id), as_json, lambda worker: f"{worker.id} takes jobs")


keys = typer.Typer(name="keys", help="Make, list and revoke API keys. Needs an administrator's key.")


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    owner: Annotated[str | None, typer.Option(help="Whose jobs and files it sees; your own when left out.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What else it may do, such as admin; may be given again.", autocompletion=among("admin")),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0.0, max=36_500.0, help="Days until it expires.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: it is shown this once."""
    with service(as_json) as client:
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = client.create_key(name, owner_id=owner, scopes=scope or (), expires_at=expires_at)
        answered(made, as_json, lambda key: key.key)
        if not as_json:
            say(console(error=True), f"{made.id} for {made.owner_id}: keep it, the service does not")


@keys.command("list")
def keys_list(as_json: Json = False) -> None:
    """List the keys, newest first, without the secret part."""
    with service(as_json) as client:
        columns = {
            "ID": lambda key: key.id,
            "NAME": lambda key: key.name,
            "OWNER": lambda key: key.owner_id,
            "BEGINS": lambda key: key.hint,
            "SCOPES": lambda key: ",".join(key.scopes),
            "STATE": _key_state,
            "USED": lambda key: key.last_used_at,
            "EXPIRES": lambda key: key.expires_at,
        }
        listed(client.iter_keys(), as_json, columns)


def _key_state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "valid"


@keys.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, key_...", autocompletion=key_ids)],
    as_json: Json = False,
) -> None:
    """Refuse a key from now on."""
    with service(as_json) as client:
        client.revoke_key(key_id)
        if as_json:
            emit({"id": key_id, "object": "api_key", "revoked": True})
        else:
            say(console(), f"{key_id} is revoked")
