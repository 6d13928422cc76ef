"""What pruning leaves: pins and what others delete meanwhile, in a real run on tiny models."""

from __future__ import annotations

import json
import shutil

from minillm_core.manifests import verify_folder
from minillm_core.spec import CHECKPOINTS_DIR, PINNED_FILE
from minillm_core.train.checkpoints import Checkpoints
from minillm_core.train.events import EventLog
from tests.minillm_core.tiny_runs import of_type, run_here, write_run

EVERY_STEP = {"save_every": 1, "eval_every": 6, "keep_checkpoints": 1}


def step_of(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def sft_run(tmp_path):
    return write_run(tmp_path, method={"type": "sft"}, training=EVERY_STEP)


def before_each_prune(monkeypatch, act):
    prune = Checkpoints._prune

    def acting(self, state):
        act(state)
        prune(self, state)

    monkeypatch.setattr(Checkpoints, "_prune", acting)


def left(folder):
    return {path.name for path in (folder / CHECKPOINTS_DIR).iterdir()}


def test_a_pinned_one_stays_until_it_is_unpinned(tmp_path, monkeypatch):
    folder = sft_run(tmp_path)
    seen = {}

    def act(state):
        names = left(folder)
        seen[state.step] = {step_of(name) for name in names}
        if state.step in (2, 3):  # pinned while it is the newest
            pinned = [name for name in names if step_of(name) in (2, 3)]
            (folder / PINNED_FILE).write_text(json.dumps(pinned))
        elif state.step == 5:
            (folder / PINNED_FILE).write_text(json.dumps([name for name in names if step_of(name) == 3]))

    before_each_prune(monkeypatch, act)
    found = run_here(folder)
    assert {2, 3} <= seen[5], "both pins held while newer ones came"
    steps = {step_of(name) for name in left(folder)}
    assert 3 in steps and not {1, 2, 4} & steps
    removed = [step_of(event["path"]) for event in of_type(found, "checkpoint_removed")]
    assert 3 not in removed and {1, 2, 4} <= set(removed)
    (kept,) = [name for name in left(folder) if step_of(name) == 3]
    verify_folder(folder / CHECKPOINTS_DIR / kept)


def test_one_is_whole_whenever_it_is_spoken_of(tmp_path, monkeypatch):
    """Announced after it is there, called removed before it goes: a death in between offers nothing that is not."""
    folder = sft_run(tmp_path)
    said = []

    def checked(name):
        say = getattr(EventLog, name)

        def saying(self, *arguments, **fields):
            path = fields["path"] if "path" in fields else arguments[0]
            verify_folder(folder / path)
            said.append(name)
            say(self, *arguments, **fields)

        monkeypatch.setattr(EventLog, name, saying)

    checked("checkpoint")
    checked("checkpoint_removed")
    run_here(folder)
    assert {"checkpoint", "checkpoint_removed"} == set(said)


def test_one_that_goes_meanwhile_does_not_end_the_run(tmp_path, monkeypatch):
    folder = sft_run(tmp_path)
    own = Checkpoints._own

    def own_and_lose(self):
        """The oldest is deleted by its owner right after it was listed."""
        folders = own(self)
        if len(folders) > 1:
            shutil.rmtree(folders[-1])
        return folders

    monkeypatch.setattr(Checkpoints, "_own", own_and_lose)
    assert of_type(run_here(folder), "student")
