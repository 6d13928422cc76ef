"""What of the worker's environment a trainer may see."""

from __future__ import annotations

from worker.process.environment import clean_environment


class TestCleanEnvironment:
    def test_is_an_allowlist(self) -> None:
        source = {"PATH": "/bin", "LC_ALL": "C", "MINILLM_DATABASE_URL": "x", "HF_TOKEN": "x", "NEW_SECRET": "x"}
        assert clean_environment(source) == {"PATH": "/bin", "LC_ALL": "C"}

    def test_a_proxy_passes_without_its_password_only(self) -> None:
        assert clean_environment({"HTTPS_PROXY": "http://proxy:1"}) == {"HTTPS_PROXY": "http://proxy:1"}
        assert clean_environment({"HTTPS_PROXY": "http://u:p@proxy:1"}) == {}
