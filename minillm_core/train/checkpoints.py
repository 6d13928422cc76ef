"""Checkpoints: all that the next step depends on, in a folder that is whole or not there.

A checkpoint holds DeepSpeed's files of every rank (weights, optimizer, loss scale), ``state.json``
(:class:`RunState`), the current round and the random state of every rank, and hard links to the
weights that earlier phases ended with. It needs nothing outside of its folder, so an attempt on
another machine can resume from a copy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from minillm_core.data.sampler import CursorState
from minillm_core.errors import SystemFault
from minillm_core.manifests import FolderDamaged, commit_folder, folder_bytes, verify_folder
from minillm_core.spec import CHECKPOINTS_DIR, MANIFEST_FILE, PINNED_FILE
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine
from minillm_core.train.events import EventLog, finite
from minillm_core.train.rounds import Round

STATE_FILE = "state.json"
WEIGHTS_DIR = "weights"
KEPT_DIR = "kept"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream error")
_LITTLE_BYTES = 1 << 20
"""A disk with less free space counts as full once a write has failed."""


@dataclass
class RunState:
    """Where a run is. Everything here is JSON."""

    completed: list[str] = field(default_factory=list)
    """Phases that are done, in order."""
    phase: str | None = None
    """The phase under way, if any; ``step`` and what follows belong to it."""
    step: int = 0
    cursor: CursorState | None = None
    corpus_cursor: CursorState | None = None
    guards: dict[str, Any] | None = None
    best_score: float | None = None
    best_step: int = -1
    level: dict[str, float] | None = None
    """While every evaluation of the phase found one and the same score: ``{"score", "loss", "step"}`` of the
    lowest validation loss, which then decides."""
    results: dict[str, Any] = field(default_factory=dict)
    """Evaluations that are done, for the report."""
    train_seconds: float = 0.0
    template_clock: str | None = None
    """What the time is to chat templates, for the whole run: an ISO 8601 text of the local time."""
    rows: dict[str, str] | None = None
    """:func:`minillm_core.data.marks.marks_of`."""
    ordinal: int = 0
    """Number of checkpoints written, over all attempts."""

    @classmethod
    def loads(cls, text: str) -> RunState:
        return cls(**json.loads(text))


def random_state() -> dict[str, Any]:
    """State of the global generators of this process, as tensors and plain containers."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)), numpy_state["state"]["pos"]],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, place = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), int(place), 0, 0.0))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Checkpoints:
    """Writes, finds and prunes the checkpoints of one run folder. Every rank calls every method."""

    def __init__(self, run_dir: Path, ranks: Ranks, events: EventLog, keep: int) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / CHECKPOINTS_DIR
        self._ranks = ranks
        self._events = events
        self._keep = keep
        self.weights = run_dir / WEIGHTS_DIR
        self.kept = run_dir / KEPT_DIR
        """Files of other phases that a checkpoint carries along, such as sampled teacher responses."""
        if ranks.main:
            for folder in (self._folder, self.weights, self.kept):
                folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        ranks.barrier()

    def save(
        self,
        state: RunState,
        engine: Engine | None,
        round_: Round | None,
        metrics: dict[str, float],
        *,
        resumable: bool = True,
    ) -> None:
        """Write the state after ``state.step`` steps; returns when it is on the disk and announced.

        One that is not ``resumable`` keeps the best weights of a run that went wrong; it displaces no other.
        Raises SystemFault ``disk_full`` when the disk is.
        """
        state.ordinal += 1
        name = f"{state.ordinal:05d}-{state.phase}-{state.step:07d}"
        aside = self._folder / f".{name}"
        if self._ranks.main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
        self._ranks.barrier()
        try:
            if engine is not None:
                engine.save(aside)
            own = {"random": random_state(), "round": None if round_ is None else round_.state_dict()}
            torch.save(own, aside / f"rank-{self._ranks.rank}.pt")
            self._ranks.barrier()
            if self._ranks.main:
                self._commit(aside, name, state, metrics, resumable)
        except Exception as error:
            if not is_write_error(error):
                raise
            # Looked at before the half-written folder is gone.
            fault = disk_fault(error, "the checkpoint", self._folder)
            if self._ranks.main:
                _discard(aside)
            raise fault from error
        self._ranks.barrier()

    def _commit(self, aside: Path, name: str, state: RunState, metrics: dict[str, float], resumable: bool) -> None:
        (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=1))
        for source in (self.weights, self.kept):
            _link_files(source, aside / source.name)
        data = {
            "phase": state.phase,
            "step": state.step,
            "world": self._ranks.world,
            "resumable": resumable,
            "metrics": finite(metrics),
        }
        digest = commit_folder(aside, self._folder / name, "checkpoint", data)
        manifest_bytes = (self._folder / name / MANIFEST_FILE).stat().st_size
        total = sum(path.stat().st_size for path in (self._folder / name).rglob("*") if path.is_file())
        self._events.checkpoint(
            state.phase or "training",  # type: ignore[arg-type]
            state.step,
            path=f"{CHECKPOINTS_DIR}/{name}",
            bytes_=total - manifest_bytes,
            manifest_sha256=digest,
            best=state.step == state.best_step,
            resumable=resumable,
            metrics=metrics,
        )
        if resumable:
            self._prune(state)

    def _prune(self, state: RunState) -> None:
        """Keep the newest, the best of the phase under way, and those that the user has pinned."""
        folders = self._own()
        for folder in folders[self._keep :]:
            # Read for each: a pin may come while another is being removed.
            if folder.name in self._pinned():
                continue
            phase, step = folder.name.split("-")[1], int(folder.name.rsplit("-", 1)[1])
            if phase == state.phase and step == state.best_step:
                continue
            # First said, so that nobody is offered what is gone; then out of sight, then away: a folder under
            # its own name is always whole.
            self._events.checkpoint_removed(f"{CHECKPOINTS_DIR}/{folder.name}")
            doomed = folder.with_name(f".{folder.name}")
            # Its owner may have deleted it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _pinned(self) -> frozenset[str]:
        try:
            return frozenset(json.loads((self._run_dir / PINNED_FILE).read_text()))
        except FileNotFoundError:
            return frozenset()

    def _own(self) -> list[Path]:
        """This run folder's checkpoints, newest first."""
        found = (path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_dir())
        return sorted(found, key=lambda path: path.name, reverse=True)

    def latest(self, others: Iterable[str]) -> Path | None:
        """The newest checkpoint that verifies: of this run folder, then of ``others`` in their order.

        A damaged one is reported and passed over. Raises SystemFault when the newest one is of
        another number of ranks, whose partitions would not fit.
        """
        choice: Path | None = None
        problem: str | None = None
        if self._ranks.main:
            for folder in [*self._own(), *map(Path, others)]:
                try:
                    manifest = verify_folder(folder)
                except FolderDamaged as damage:
                    self._events.message("warning", "checkpoint_damaged", f"{damage}; trying the one before")
                    continue
                if not manifest.data.get("resumable", True):
                    continue
                if manifest.data.get("world") != self._ranks.world:
                    problem = (
                        f"the checkpoint {folder.name} was written by {manifest.data.get('world')} ranks and this "
                        f"attempt has {self._ranks.world}"
                    )
                else:
                    choice = folder
                    self._events.message(
                        "info",
                        "resuming",
                        f"going on from {folder.name}",
                        path=str(folder),
                        bytes=folder_bytes(manifest),
                    )
                break
        choice, problem = self._ranks.broadcast((choice, problem))
        if problem is not None:
            raise SystemFault("checkpoint_unreadable", problem)
        return choice

    def load(self, folder: Path) -> tuple[RunState, Round | None, dict[str, Any]]:
        """State, this rank's round and random state of a verified checkpoint; brings its kept files here."""
        if self._ranks.main:
            for target in (self.weights, self.kept):
                _link_files(folder / target.name, target)
        self._ranks.barrier()
        state = RunState.loads((folder / STATE_FILE).read_text())
        own = torch.load(folder / f"rank-{self._ranks.rank}.pt", weights_only=True)
        round_ = None if own["round"] is None else Round.from_state(own["round"])
        return state, round_, own["random"]


def _discard(folder: Path) -> None:
    """Remove a half-written folder and free its space at once.

    A writer that failed holds its file open for as long as its exception lives, and the space of a removed
    file that is open stays taken: a file that has no other name is emptied first.
    """
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_nlink == 1:
                os.truncate(path, 0)
    shutil.rmtree(folder, ignore_errors=True)


def is_write_error(error: Exception) -> bool:
    """Whether a file could not be written. safetensors and torch have errors of their own for that."""
    if isinstance(error, RuntimeError):
        return any(word in str(error) for word in _TORCH_WRITER)
    return isinstance(error, (OSError, SafetensorError))


def disk_fault(error: Exception, what: str, folder: Path | None = None) -> SystemFault:
    """A failed write as the fault it is: a full disk has its own code.

    torch does not say why it could not write: the free space of ``folder`` does.
    """
    full = getattr(error, "errno", None) in FULL_DISK or any(f"(os error {code})" in str(error) for code in FULL_DISK)
    if full or (folder is not None and shutil.disk_usage(folder).free < _LITTLE_BYTES):
        return SystemFault("disk_full", f"no space left for {what}: {error}", retryable=True)
    return SystemFault("write_failed", f"{what} cannot be written: {error}", retryable=True)


def _link_files(source: Path, target: Path) -> None:
    """Hard links (copies across file systems) of the files of a folder that may not exist."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        aside = target / f".{path.name}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        try:
            os.link(path, aside)
        except OSError:
            shutil.copy2(path, aside)
        aside.replace(target / path.name)
