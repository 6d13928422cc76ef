"""`python -m api keys`: makes, lists and revokes API keys in the database itself.

For the first key of a service that others shall reach, and the way back into one whose last administrator's key has
expired or been revoked: whoever may read the settings on this machine is its administrator.
"""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from api.auth import LOCAL_OWNER
from api.keys.schemas import OWNER_ID
from store.api_keys import ADMIN, SCOPES, KeyRepository, require_keys
from store.db.clock import database_now
from store.db.database import Database
from store.db.errors import NotFound
from store.db.tables import ApiKey
from store.program import begin
from store.settings import Settings

EX_DATAERR, EX_UNAVAILABLE, EX_CANTCREAT = 65, 69, 73  # sysexits.h


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    settings = begin("keys")
    database = Database(settings.database_url)
    try:
        match options.command:
            case "create":
                _create(settings, database, options)
            case "list":
                _list(settings, database, everything=options.all)
            case "revoke":
                with database.write() as session:
                    keys = KeyRepository(session, settings.secret())
                    keys.revoke(keys.get(None, options.id))
    except NotFound:
        return _failed(f"There is no key {options.id}: `python -m api keys list` shows them.", EX_DATAERR)
    except SQLAlchemyError as error:
        reason = f"The database does not answer or lacks its schema (`python -m migrations`): {type(error).__name__}."
        return _failed(reason, EX_UNAVAILABLE)
    except OSError as error:
        return _failed(f"The data folder cannot be written: {error}.", EX_CANTCREAT)
    finally:
        database.dispose()
    return 0


def _failed(reason: str, code: int) -> int:
    print(reason, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api keys", description=(__doc__ or "").partition("\n\n")[2])
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it: it is shown this once")
    create.add_argument("--admin", action="store_true", help="the same as --scope admin")
    create.add_argument("--scope", action="append", choices=SCOPES, default=[], help="may be given again")
    create.add_argument("--name", type=_name, default="made on the command line")
    create.add_argument("--owner", type=_owner, default=LOCAL_OWNER, help=f"whose jobs it sees; {LOCAL_OWNER!r}")
    create.add_argument("--days", type=_days, help="how long it is valid; for ever when left out")
    shown = commands.add_parser("list", help="list the keys that can be used")
    shown.add_argument("--all", action="store_true", help="also those that are revoked or have expired")
    commands.add_parser("revoke", help="refuse a key from now on").add_argument("id", help="as `list` shows it")
    return parser


def _name(text: str) -> str:
    if not 1 <= len(text) <= 200:
        raise argparse.ArgumentTypeError("a name has 1 to 200 characters")
    return text


def _owner(text: str) -> str:
    if not re.fullmatch(OWNER_ID, text):
        raise argparse.ArgumentTypeError("an owner is 1 to 40 letters, digits and any of _ . -")
    return text


def _days(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError("a number from 1 to 36500")
    return int(text)


def _create(settings: Settings, database: Database, options: argparse.Namespace) -> None:
    scopes = sorted({*options.scope, *([ADMIN] if options.admin else [])})
    with database.write() as session:
        keys = KeyRepository(session, settings.secret())
        # The first key closes the service: one that could make no other would lock everybody out.
        if ADMIN not in scopes and settings.bootstrap_api_key is None and not keys.any_usable():
            raise SystemExit("No key can be used so far: the first must be an administrator's (--admin).")
        expires_at = None if options.days is None else database_now(session) + dt.timedelta(days=options.days)
        row, token = keys.create(owner_id=options.owner, name=options.name, scopes=scopes, expires_at=expires_at)
        require_keys(settings)
    print(f"{row.id} for {row.owner_id}; the key, which is not shown again:", file=sys.stderr)
    print(token)


def _list(settings: Settings, database: Database, *, everything: bool) -> None:
    with database.read() as session:
        keys = KeyRepository(session, b"")
        now = database_now(session)
        after: str | None = None
        while True:
            page = keys.list(None, limit=100, order="asc", after=after)
            for row in page.items:
                if everything or _state(row, now) == "valid":
                    fields = (row.id, row.hint + "...", row.owner_id, ",".join(row.scopes) or "-", _state(row, now))
                    print(*fields, row.name, sep="\t")
            if not page.has_more:
                return
            after = page.items[-1].id


def _state(row: ApiKey, now: dt.datetime) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "valid"
