"""What the README shows works: its examples run against an embedded service on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from minillm import Client
from minillm.embedded import EmbeddedService
from minillm_core.spec import JobSpec
from store.settings import Settings
from tests import services
from tests.packaging.compose import ROOT
from tests.tiny_models import write_tiny_model

README = (ROOT / "README.md").read_text()
URL = "http://127.0.0.1:8000"


def example(name: str) -> str:
    """The code block under ``<!-- example: name -->``."""
    match = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match is not None, name
    return match[1]


class TestText:
    def test_the_job_of_the_curl_example_is_one(self) -> None:
        body = re.search(r"<<END.*?\n(\{.*\})\nEND", example("curl"), re.DOTALL)
        assert body is not None
        JobSpec.model_validate(json.loads(body[1].replace("$FILE", "file_0")))

    def test_settings_exist_and_have_the_defaults_shown(self) -> None:
        rows = re.findall(r"^\| (`MINILLM_.*?) \| (.*?) \|", README, re.MULTILINE)
        assert len(rows) > 5
        for variables, defaults in rows:
            for variable, default in zip(variables.split(", "), defaults.split(", "), strict=True):
                field = Settings.model_fields[variable.strip("`").removeprefix("MINILLM_").lower()]
                if default.startswith("`"):
                    shown = field.default
                    text = f"{shown:g}" if isinstance(shown, float) else str(shown)
                    assert text.lower() == default.strip("`").lower(), variable

    def test_commands_of_make_exist(self) -> None:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(re.findall(r"make (demo|test|setup)\b", README)) <= set(targets)

    def test_a_real_picture_of_watch_is_shown(self) -> None:
        picture = re.search(r"<!-- watch -->\n```\n(.*?)```", README, re.DOTALL)
        assert picture is not None
        for word in ("step", "loss", "reverse KL", "ROUGE-L", "tokens/s", "left"):
            assert word in picture[1]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an embedded service with a tiny teacher under the name that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    (name,) = set(re.findall(r'"path:([\w.-]+)"', README))
    write_tiny_model(folder / "models" / name, layers=30, scale=4.0, context=256)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MINILLM_")}
    embedded = EmbeddedService(folder, port=0, environment=kept, log=folder / "service.log")
    try:
        embedded.start()
        address = embedded.ready(timeout=240)
        services.USED.update(("sqlite", "valkey"))
        yield address
    finally:
        embedded.stop(at_once=True)


@pytest.mark.timeout(900)
class TestExamples:
    def test_curl(self, service: str) -> None:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        script = f"set -euo pipefail\n{example('curl').replace(URL, service)}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        job = json.loads(done.stdout)
        assert job["object"] == "job" and job["name"] == "smol"
        with Client(service, api_key="") as client:
            client.cancel(job["id"], keep="none")
            client.wait(job["id"], timeout=300)

    def test_python(self, service: str, tmp_path: Path) -> None:
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        environment = {**os.environ, "MINILLM_URL": service, "MINILLM_API_KEY": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", example("python")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "succeeded" in done.stdout and "ROUGE-L" in done.stdout
        # The way by tar that the text names, for the same job.
        with Client(service, api_key="") as client:
            (job,) = client.jobs(state="succeeded")
        packed = httpx.get(f"{service}/v1/jobs/{job.id}/artifact?format=tar", timeout=60).raise_for_status()
        with tarfile.open(fileobj=BytesIO(packed.content)) as archive:
            sizes = {Path(member.name).name: member.size for member in archive.getmembers() if member.isfile()}
        assert sizes["model.safetensors"] == (tmp_path / "student" / "model.safetensors").stat().st_size
