"""What a shell offers after a tab, and that a service which is away costs it neither an error nor its patience."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from minillm.cli import app
from minillm.cli.completion import job_ids
from tests.client.played import Service


def offered(line: str) -> list[str]:
    """What bash would be offered for the last word of a command line."""
    words = line.split(" ")
    environment = {
        "_MINILLM_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="minillm", env=environment)
    assert result.stderr == ""
    return result.stdout.split()


def test_commands_and_words_that_are_known() -> None:
    assert {"submit", "show", "keys", "undrain"} <= set(offered("minillm "))
    assert offered("minillm jobs --state pa") == ["pausing", "paused"]
    assert offered("minillm upload rows.jsonl --purpose c") == ["corpus", "calibration"]


def test_ids_that_the_service_knows(service: Service) -> None:
    job_id = service.submit()
    taken = service.claim()
    service.checkpoint(taken)
    worker = service.worker()
    with service.client() as client:
        (checkpoint,) = client.checkpoints(job_id)
    assert offered("minillm show job_") == [job_id]
    assert offered("minillm show model_") == []
    assert offered(f"minillm pin {job_id} ") == [checkpoint.id]
    assert offered("minillm drain ") == [worker]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[::1", "silent"])
def test_nothing_where_there_is_no_service(url: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILLM_URL", silent if url == "silent" else url)
    assert offered("minillm show ") == []


def test_answers_that_make_no_sense(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nonsense(scope: dict, receive: object, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[{]"})

    monkeypatch.setenv("MINILLM_URL", serve(nonsense))
    assert job_ids("") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, shell))
    result = CliRunner().invoke(app, ["--show-completion"], prog_name="minillm")
    assert result.exit_code == 0, result.output
    assert "_MINILLM_COMPLETE" in result.stdout
