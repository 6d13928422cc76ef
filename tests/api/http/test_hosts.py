"""Which Host headers are answered without keys and with them, and which pages may call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from api.app import create_app
from api.http.hosts import AllowedHosts, requested_host
from store.settings import Settings
from tests.api.conftest import BOOTSTRAP, check_problem

OURS = [
    *("localhost", "LOCALHOST", "localhost.", "localhost:8000", "localhost:", "Localhost.:1"),
    *("127.0.0.1", "127.0.0.1:8000", "127.5.6.7", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80"),
]
NOT_OURS = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example"),
    *(
        "0.0.0.0",
        "0.0.0.0:8000",
        "10.0.0.1",
        "[::]",
        "[::2]:80",
        "169.254.169.254",
        "127.1",
        "2130706433",
        "0x7f000001",
    ),
    *("", " ", ":8000", ".", "localhost..", "localhost:99999", "localhost:80x", "localhost:-1", "localhost:80:80"),
    *("evil@localhost", "localhost@evil.example", "localhost/evil", "localhost#", "localhost?", "%6cocalhost"),
    *("localhost,evil.example", "localhost evil.example", "localhost\\", "[localhost]", "[::1", "::1", "ｌocalhost"),
    *("http://localhost", "localhost\t.evil.example", "xn--localhost", "*", "*.localhost"),
]


def scope(*hosts: str, path: str = "/v1/jobs") -> dict[str, object]:
    return {"type": "http", "path": path, "headers": [(b"host", host.encode()) for host in hosts]}


def allowed(*hosts: str, path: str = "/v1/jobs", names: tuple[str, ...] = ()) -> bool:
    asked = scope(*hosts, path=path)
    return requested_host(asked, Headers(scope=asked)) in AllowedHosts(names)


class TestNames:
    @pytest.mark.parametrize("host", OURS)
    def test_those_of_the_loopback(self, host: str) -> None:
        assert allowed(host)

    @pytest.mark.parametrize("host", NOT_OURS)
    def test_no_others(self, host: str) -> None:
        assert not allowed(host)

    def test_missing_and_doubled(self) -> None:
        assert not allowed()
        assert not allowed("localhost", "localhost") and not allowed("localhost", "evil.example")

    def test_a_target_with_a_scheme(self) -> None:
        assert allowed("localhost:80", path="http://LOCALHOST:80/v1/jobs")
        assert not allowed("localhost", path="http://evil.example/v1/jobs")
        assert not allowed("localhost", path="evil.example")

    @pytest.mark.parametrize(
        ("host", "names", "is_ours"),
        [
            ("minillm.example.org:8443", ("minillm.example.org",), True),
            ("MiniLLM.Example.org.", ("minillm.example.org",), True),
            ("sub.minillm.example.org", ("minillm.example.org",), False),
            ("a.b.example.org", ("*.example.org",), True),
            ("example.org", ("*.example.org",), False),
            ("evilexample.org", ("*.example.org",), False),
            ("[fd00::7]:8000", ("fd00::7",), True),
            ("localhost", ("minillm.example.org",), True),
        ],
    )
    def test_those_of_the_list(self, host: str, names: tuple[str, ...], is_ours: bool) -> None:
        assert allowed(host, names=Settings(allowed_hosts=names).allowed_hosts) is is_ours

    def test_the_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINILLM_ALLOWED_HOSTS", " One.example , [fd00::7],")
        assert Settings().allowed_hosts == ("one.example", "fd00::7")
        for wrong in ("http://a", "a:80", "*", "a b", "a/b"):
            monkeypatch.setenv("MINILLM_ALLOWED_HOSTS", wrong)
            with pytest.raises(ValueError, match="host name or address"):
                Settings()


@pytest.fixture
def open_client(make_settings: Callable[..., Settings]) -> TestClient:
    """A service without keys, asked as localhost."""
    return TestClient(create_app(make_settings(allowed_hosts=())), base_url="http://localhost:8000")


class TestWithoutKeys:
    @pytest.mark.parametrize("path", ["/v1/jobs", "/openapi.json", "/docs", "/nothing", "/healthz", "/metrics"])
    def test_a_page_whose_name_was_made_to_mean_this_machine(self, open_client: TestClient, path: str) -> None:
        assert open_client.get(path).status_code in (200, 404)
        for headers in (
            {"Host": "evil.example"},
            {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
            {"Host": "evil.example", "Authorization": "Bearer x"},
        ):
            check_problem(open_client.get(path, headers=headers), 421, "host_not_allowed", "Host")

    def test_it_makes_no_key(self, open_client: TestClient) -> None:
        headers = {"Host": "evil.example", "Origin": "http://evil.example"}
        refused = open_client.post("/v1/api_keys", json={"name": "x", "scopes": ["admin"]}, headers=headers)
        check_problem(refused, 421, "host_not_allowed", "Host")
        assert open_client.get("/v1/api_keys").json()["data"] == []

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:3000"},
            {"Origin": "http://127.0.0.1:8000"},
            {"Origin": "https://evil.example", "Authorization": "Bearer x"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    def test_pages_of_other_sites_change_nothing(self, open_client: TestClient, headers: dict[str, str]) -> None:
        check_problem(open_client.post("/v1/jobs/x/cancel", headers=headers), 403, "cross_origin")

    @pytest.mark.parametrize("headers", [{"Origin": "http://localhost:8000"}, {"Sec-Fetch-Site": "same-origin"}, {}])
    def test_its_own_pages_may(self, open_client: TestClient, headers: dict[str, str]) -> None:
        key = open_client.post("/v1/api_keys", json={"name": "x", "scopes": ["admin"]}, headers=headers)
        assert key.status_code == 201


KEY = {"Authorization": f"Bearer {BOOTSTRAP}"}


class TestWithKeys:
    def test_any_name_where_none_is_listed(self, make_settings: Callable[..., Settings]) -> None:
        client = TestClient(create_app(make_settings(allowed_hosts=(), bootstrap_api_key=BOOTSTRAP)))
        headers = {**KEY, "Host": "any.example"}
        assert client.get("/v1/jobs", headers=headers).status_code == 200
        assert client.post("/v1/jobs/x/cancel", headers={**headers, "Origin": "https://a.example"}).status_code != 403

    def test_those_listed_and_the_loopbacks_where_some_are(self, make_settings: Callable[..., Settings]) -> None:
        settings = make_settings(allowed_hosts=("one.example",), bootstrap_api_key=BOOTSTRAP)
        client = TestClient(create_app(settings))
        for host in ("one.example", "localhost:8000"):
            assert client.get("/v1/jobs", headers={**KEY, "Host": host}).status_code == 200
        refused = client.get("/v1/jobs", headers={**KEY, "Host": "two.example"})
        check_problem(refused, 421, "host_not_allowed", "Host")
        # A load balancer asks by address.
        assert client.get("/readyz", headers={"Host": "10.1.2.3:8000"}).status_code == 200
