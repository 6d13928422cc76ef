"""Series of measurements, whole, thinned by the database, and by pages, against the same done by hand."""

from __future__ import annotations

import datetime as dt
import itertools
import tracemalloc
from typing import Any

import pytest
from sqlalchemy import insert

from minillm_core.spec import Phase
from store.db.database import Database
from store.db.tables import MetricPoint
from store.jobs.metrics import MetricRepository, StepMetrics, names_key
from tests.store import scenes

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def write(database: Database, job_id: str, *points: tuple[int, str, int, dict[str, float]]) -> None:
    rows = [
        {
            "job_id": job_id,
            "attempt": attempt,
            "seq": seq,
            "phase": phase,
            "step": step,
            "values": values,
            "names_key": names_key(values),
            "created_at": NOW,
        }
        for seq, (attempt, phase, step, values) in enumerate(points, 1)
    ]
    with database.write() as session:
        session.execute(insert(MetricPoint), rows)


def series(database: Database, job_id: str, **choice: Any) -> list[StepMetrics]:
    with database.read() as session:
        return list(MetricRepository(session).series(scenes.row(database, job_id), **choice).items)


@pytest.fixture
def job_id(database: Database) -> str:
    """Two attempts through 100 steps with dev scores at every tenth, after a phase of 30 steps."""
    job_id = scenes.make_job(database)
    write(
        database,
        job_id,
        *((1, Phase.STUDENT_SFT, step, {"loss": 9.0}) for step in range(1, 31)),
        *((1, Phase.TRAINING, step, {"loss": 1.0, "old": 1.0}) for step in range(1, 61)),
        (1, Phase.TRAINING, 60, {"dev": 1.0}),
        *((2, Phase.TRAINING, step, {"loss": float(step), "reward": 2.0}) for step in range(41, 101)),
        *((2, Phase.TRAINING, step, {"dev": float(step)}) for step in range(50, 101, 10)),
    )
    return job_id


def test_whole(database: Database, job_id: str) -> None:
    rows = series(database, job_id)
    assert [row.step for row in rows[:30]] == list(range(1, 31)) and {row.phase for row in rows[:30]} == {"student_sft"}
    training = rows[30:]
    # Of the first attempt's later steps only what the second did not measure again is left.
    assert [(row.attempt, row.step, row.values) for row in training if row.step == 60] == [
        (1, 60, {"old": 1.0}),
        (2, 60, {"dev": 60.0, "loss": 60.0, "reward": 2.0}),
    ]
    assert [row.step for row in training if "loss" in row.values] == list(range(1, 101))


@pytest.mark.parametrize("points", [1, 2, 3, 7, 29, 30, 1000])
def test_thinned_evenly_with_the_last(database: Database, job_id: str, points: int) -> None:
    rows = series(database, job_id, points=points)
    whole = {(row.phase, row.step, row.attempt): row.values for row in series(database, job_id)}
    for phase, name, steps in [
        ("student_sft", "loss", range(1, 31)),
        ("training", "loss", range(1, 101)),
        ("training", "old", range(1, 61)),
        ("training", "reward", range(41, 101)),
        ("training", "dev", range(50, 101, 10)),
    ]:
        kept = [row.step for row in rows if row.phase == phase and name in row.values]
        assert kept == sorted(set(kept)) and set(kept) <= set(steps)
        assert len(kept) == min(points, len(steps)) and kept[-1] == steps[-1]
        if points > 1:
            assert kept[0] == steps[0]
            gaps = [after - before for before, after in itertools.pairwise(kept)]
            assert max(gaps, default=0) <= 3 * (steps[-1] - steps[0]) / (min(points, len(steps)) - 1)
    for row in rows:
        assert row.values.items() <= whole[row.phase, row.step, row.attempt].items(), "the newest of each step"


def test_a_single_series_is_thinned_to_the_step(database: Database) -> None:
    job_id = scenes.make_job(database)
    write(database, job_id, *((1, Phase.TRAINING, step, {"loss": 1.0, "dev": 1.0}) for step in range(2, 42)))
    for points in range(1, 42):
        rows = series(database, job_id, names=["loss"], points=points)
        expected = [2 + int(k * 39 / (points - 1) + 0.5) for k in range(points)] if 1 < points < 40 else None
        assert [row.step for row in rows] == (expected or ([41] if points == 1 else list(range(2, 42))))


@pytest.mark.parametrize("points", [None, 20])
def test_pages_are_the_whole(database: Database, job_id: str, points: int | None) -> None:
    whole = series(database, job_id, points=points, since_step=4)
    pages: list[StepMetrics] = []
    after = None
    with database.read() as session:
        job = scenes.row(database, job_id)
        for _ in range(100):
            page = MetricRepository(session).series(job, points=points, since_step=4, after=after, limit=7)
            pages += page.items
            if not page.has_more:
                break
            assert len({row.position for row in page.items}) == 7
            after = page.items[-1].position
    assert pages == whole


def test_choice(database: Database, job_id: str) -> None:
    assert {name for row in series(database, job_id, names=["dev", "old"]) for name in row.values} == {"dev", "old"}
    assert {row.phase for row in series(database, job_id, phase="student_sft", points=5)} == {"student_sft"}
    assert series(database, job_id, phase="exporting") == series(database, job_id, names=["x"], points=2) == []
    assert {row.step for row in series(database, job_id, since_step=99, points=50)} == {99, 100}
    with database.read() as session:
        repository = MetricRepository(session)
        job = scenes.row(database, job_id)
        assert repository.names(job) == ["dev", "loss", "old", "reward"]
        assert repository.names(job, phase="training", since_step=61) == ["dev", "loss", "reward"]
        for wrong in ({"points": 0}, {"limit": 0}):
            with pytest.raises(ValueError, match="at least 1"):
                repository.series(job, **wrong)


def test_a_thinned_series_and_a_page_hold_little(database: Database) -> None:
    job_id = scenes.make_job(database)
    names = [f"metric_{number}" for number in range(18)]
    write(database, job_id, *((1, Phase.TRAINING, step, dict.fromkeys(names, 1.0)) for step in range(5000)))
    for choice in ({"points": 50}, {"limit": 50}):
        series(database, job_id, **choice)
        tracemalloc.start()
        assert len(series(database, job_id, **choice)) == 50
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4_000_000, "the whole is 40 MB"
