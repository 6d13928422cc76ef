"""Shows a job while it runs: one live picture on a terminal, one plain line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import yaml
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from minillm.types import DryRun, Job, MetricPoint

# Title, names of the metric in the order of preference, format.
METRICS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss",), "{:.4f}"),
    ("reverse KL", ("reverse_kl",), "{:.4f}"),
    ("ROUGE-L", ("dev_rouge_l", "rouge_l"), "{:.2f}"),
)
_COPIED = ("ID", "REFERENCE")
_SPEC_FIELDS = (
    *("teacher", "student", "dataset", "pretrain_corpus", "method", "training", "guards", "resources", "scheduling"),
    *("evaluation", "export"),
)
_STATE_COLOURS = {"succeeded": "green", "failed": "red", "expired": "red", "cancelled": "yellow", "paused": "yellow"}


def printable(text: str) -> str:
    """Text from the service without control characters: a terminal must not obey a job's name."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def duration(seconds: float) -> str:
    """Seconds as `8s`, `3m05s` or `2h07m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def measurements(job: Job) -> list[tuple[str, str]]:
    """What `watch` shows of the metrics, in its order; those not measured yet are left out."""
    shown = []
    for title, names, form in METRICS:
        value = next((job.metrics[name] for name in names if job.metrics.get(name) is not None), None)
        if value is not None:
            shown.append((title, form.format(value)))
    if job.progress.tokens_per_second is not None and not job.is_terminal:
        shown.append(("tokens/s", f"{job.progress.tokens_per_second:,.0f}"))
    if job.progress.seconds_left is not None and not job.is_terminal:
        shown.append(("left", duration(job.progress.seconds_left)))
    return shown


def _steps(job: Job) -> str | None:
    progress = job.progress
    if not progress.total_steps:
        return None
    return f"{progress.step}/{progress.total_steps}"


def _queue(job: Job) -> str:
    return f" (number {job.queue_position} in the queue)" if job.queue_position and job.state == "queued" else ""


def plain_line(job: Job) -> str:
    """The job as one line without control characters, the same for the same picture."""
    parts = [job.id, job.state + _queue(job)]
    if job.phase and not job.is_terminal:
        parts.append(job.phase)
    if steps := _steps(job):
        parts.append(f"step {steps}")
    if not job.is_terminal and job.progress.fraction:
        parts.append(f"{job.progress.fraction:.0%}")
    parts += [f"{title} {value}" for title, value in measurements(job)]
    if job.attempt > 1:
        parts.append(f"attempt {job.attempt}")
    return printable("  ".join(parts)).replace("\n", " ")


def failure_line(job: Job) -> str | None:
    """Why the job failed, in one line; None where it did not."""
    if job.failure is None:
        return None
    where = f" at {job.failure.param}" if job.failure.param else ""
    return printable(f"{job.failure.code} ({job.failure.category}){where}: {job.failure.message}").replace("\n", " ")


def picture(job: Job) -> RenderableType:
    """The job as a block for a terminal."""
    head = Text.assemble(
        (printable(job.name or job.id), "bold"),
        "  ",
        (job.state + _queue(job), _STATE_COLOURS.get(job.state, "cyan")),
        "  ",
        (job.phase or "" if not job.is_terminal else "", "dim"),
    )
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=1.0 if job.state == "succeeded" else job.progress.fraction, width=40),
        f"{job.progress.fraction:.0%}",
        f"step {_steps(job)}" if _steps(job) else "",
    )
    rows: list[RenderableType] = [head, bar]
    if shown := measurements(job):
        figures = Table.grid(padding=(0, 3))
        figures.add_row(*(Text(title, style="dim") for title, _ in shown))
        figures.add_row(*(Text(value, style="bold") for _, value in shown))
        rows.append(figures)
    if (reason := failure_line(job)) is not None:
        rows.append(Text(reason, style="red"))
    return Group(*rows)


def follow(jobs: Iterable[Job], console: Console) -> Job:
    """Show each state of a job as it comes and return the last one. Raises ValueError when there is none."""
    return _live(jobs, console) if console.is_terminal else _plain(jobs, console)


def _live(jobs: Iterable[Job], console: Console) -> Job:
    last: Job | None = None
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        for last in jobs:
            live.update(picture(last), refresh=True)
    if last is None:
        raise ValueError("there was no job to follow")
    return last


def _plain(jobs: Iterable[Job], console: Console) -> Job:
    last: Job | None = None
    said = ""
    for last in jobs:
        line = plain_line(last)
        if line != said:
            say(console, f"{time.strftime('%H:%M:%S')}  {line}")
            said = line
    if last is None:
        raise ValueError("there was no job to follow")
    if (reason := failure_line(last)) is not None:
        say(console, reason)
    return last


def say(console: Console, text: str) -> None:
    """One plain line, at once: no markup, no wrapping, no control characters."""
    console.file.write(printable(text) + "\n")
    console.file.flush()


def _cell(value: Any, terminal: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone():%m-%d %H:%M}" if terminal else value.isoformat(timespec="seconds")
    return printable(str(value))


def table(console: Console, titles: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Rows as a table on a terminal and as tab-separated lines elsewhere.

    Times are RFC 3339 in the lines, and on a terminal as short as its own clock shows them.
    """
    cells = [[_cell(cell, console.is_terminal) for cell in row] for row in rows]
    if not console.is_terminal:
        for row in [list(titles), *cells]:
            say(console, "\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    # What is there to be copied is never cut, however narrow the terminal; the other columns give way.
    columns = (Column(title, no_wrap=title in _COPIED, overflow="fold") for title in titles)
    shown = Table(*columns, box=None, pad_edge=False)
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)


def details(job: Job) -> str:
    """One job in full, as lines to read."""
    lines = [f"{job.id}  {job.name or ''}".rstrip(), ""]
    told = {
        "state": job.state + _queue(job),
        "wanted": None if job.is_terminal else job.desired_state,
        "phase": None if job.is_terminal else job.phase,
        "step": _steps(job),
        "done": f"{job.progress.fraction:.0%}",
        "attempt": job.attempt or None,
        "failure": failure_line(job),
        "student": job.student_model,
        "created": _moment(job.created_at),
        "started": _moment(job.started_at),
        "finished": _moment(job.finished_at),
        "metadata": ", ".join(f"{name}={value}" for name, value in job.metadata.items()) or None,
    }
    lines += [f"{title:<9} {value}" for title, value in told.items() if value is not None]
    lines += [f"{title:<9} {value}" for title, value in measurements(job)]
    spec = {name: value for name, value in (job.model_extra or {}).items() if name in _SPEC_FIELDS and value}
    lines += ["", "# The job, as it was asked for", _yaml({"seed": job.seed, **spec})]
    if job.report:
        lines += ["# The report", _yaml({name: value for name, value in job.report.items() if name != "samples"})]
    return "\n".join(lines).rstrip()


def dry_run_lines(found: DryRun) -> str:
    """What a spec comes to, as lines to read."""
    lines = ["Nothing is wrong with it; no job was made.", ""]
    for title in ("teacher", "student", "dataset"):
        facts = getattr(found, title)
        lines.append(
            f"{title:<9} " + ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        )
    lines += ["", "# The job with every default filled in", _yaml(found.spec)]
    if found.method:
        lines += ["# Its method with the recipe applied", _yaml(found.method)]
    return "\n".join(lines).rstrip()


def series_table(screen: Console, names: list[str], points: Iterable[MetricPoint]) -> None:
    """Values by step, a column a metric."""
    rows = ((point.phase, point.step, *(point.values.get(name) for name in names)) for point in points)
    table(screen, ("PHASE", "STEP", *names), rows)


def summary_table(screen: Console, points: Iterable[MetricPoint]) -> None:
    """Each metric in a line: how often it was measured, its ends and its range."""
    series: dict[str, list[float]] = {}
    for point in points:
        for name, value in point.values.items():
            if value is not None:
                series.setdefault(name, []).append(value)
    rows = (
        (name, len(values), *(f"{value:.6g}" for value in (values[0], values[-1], min(values), max(values))))
        for name, values in sorted(series.items())
    )
    table(screen, ("METRIC", "POINTS", "FIRST", "LAST", "LEAST", "MOST"), rows)


def _moment(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110))
