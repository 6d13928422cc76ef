"""What is sent again, what is not, and what an answer that is no success becomes."""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from minillm import ApiError, Client, MinillmError, Unreachable
from minillm.transport import MAX_RETRIES

JOB = {"id": "job_1", "object": "job", "state": "queued"}
Handler = Callable[[httpx.Request], httpx.Response]


class Script:
    """Answers each request with the next of a list; the last one again and again."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self), sleep=self.slept.append)


def answer(status: int, body: object = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


class TestRetries:
    def test_a_read_is_repeated_until_the_service_is_back(self) -> None:
        script = Script(answer(503), httpx.ReadTimeout("slow"), answer(200, JOB))
        assert script.client().job("job_1").state == "queued"
        assert len(script.requests) == 3
        assert all(0 < pause < 15 for pause in script.slept)

    def test_retry_after_is_obeyed(self) -> None:
        script = Script(answer(429, retry_after="7"), answer(200, JOB))
        script.client().job("job_1")
        assert script.slept == [7.0]

    def test_retry_after_may_be_a_date(self) -> None:
        soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        script = Script(answer(503, retry_after=soon), answer(200, JOB))
        script.client().job("job_1")
        assert 20 < script.slept[0] <= 30

    def test_more_patience_than_anybody_has_is_not_waited_for(self) -> None:
        script = Script(answer(429, {"code": "quota_exceeded", "retryable": True}, retry_after="3600"))
        with pytest.raises(ApiError) as caught:
            script.client().create_job({})
        assert (caught.value.code, caught.value.retry_after, script.slept) == ("quota_exceeded", 3600.0, [])

    @pytest.mark.parametrize(
        ("status", "retryable", "repeated"),
        [(409, True, True), (409, False, False), (429, False, False), (500, False, False), (503, True, True)],
    )
    def test_what_the_problem_says_of_itself_counts(self, status: int, retryable: bool, repeated: bool) -> None:
        script = Script(answer(status, {"code": "some", "retryable": retryable}), answer(201, JOB))
        if repeated:
            assert script.client().create_job({}).id == "job_1"
        else:
            with pytest.raises(ApiError) as caught:
                script.client().create_job({})
            assert caught.value.retryable is False
        assert len(script.requests) == 1 + repeated

    def test_retries_can_be_forbidden(self) -> None:
        script = Script(httpx.ConnectError("refused"))
        with pytest.raises(Unreachable):
            Client("http://service", max_retries=0, transport=httpx.MockTransport(script)).job("job_1")
        assert len(script.requests) == 1

    def test_it_gives_up_with_the_last_answer(self) -> None:
        script = Script(answer(503, {"code": "database_unavailable", "detail": "later"}))
        with pytest.raises(ApiError) as caught:
            script.client().job("job_1")
        assert (caught.value.status, caught.value.code) == (503, "database_unavailable")
        assert len(script.requests) == 1 + MAX_RETRIES

    def test_a_permanent_refusal_is_not_repeated(self) -> None:
        script = Script(answer(503, x_should_retry="false"))
        with pytest.raises(ApiError):
            script.client().job("job_1")
        assert len(script.requests) == 1

    def test_an_upload_is_not_repeated_once_it_may_have_arrived(self, tmp_path) -> None:
        (tmp_path / "rows.jsonl").write_text("{}\n")
        for fault in (answer(502), httpx.ReadError("broke")):
            script = Script(fault)
            with pytest.raises((ApiError, Unreachable)):
                script.client().upload_file(tmp_path / "rows.jsonl")
            assert len(script.requests) == 1

    def test_an_upload_is_repeated_whole_when_no_connection_was_made_or_it_was_refused(self, tmp_path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
        bodies = []

        def keep(request: httpx.Request) -> httpx.Response:
            bodies.append(request.read())
            if len(bodies) == 1:
                raise httpx.ConnectError("refused")
            return answer(429) if len(bodies) == 2 else answer(201, {"id": "file_1"})

        client = Client("http://service", transport=httpx.MockTransport(keep), sleep=lambda _: None)
        assert client.upload_file(tmp_path / "rows.jsonl").id == "file_1"
        assert len(bodies) == 3
        assert all(b'"response": "b"' in body for body in bodies)

    def test_a_create_is_repeated_under_one_key(self) -> None:
        script = Script(answer(500), httpx.ReadError("broke"), answer(201, JOB))
        script.client().create_job({"name": "x"})
        keys = {request.headers["idempotency-key"] for request in script.requests}
        assert len(script.requests) == 3
        assert len(keys) == 1
        script.client().create_job({"name": "x"})
        assert script.requests[-1].headers["idempotency-key"] not in keys

    def test_a_retry_of_a_job_is_sent_once(self) -> None:
        script = Script(answer(502))
        with pytest.raises(ApiError):
            script.client().retry("job_1")
        assert len(script.requests) == 1


class TestErrors:
    def test_problem_json_becomes_an_error_that_names_the_field(self) -> None:
        body = {"code": "invalid_value", "param": "/training/learning_rate", "detail": "must be above 0"}
        script = Script(answer(422, body, x_request_id="req_1"))
        with pytest.raises(ApiError) as caught:
            script.client().create_job({})
        error = caught.value
        assert (error.status, error.code, error.param) == (422, "invalid_value", "/training/learning_rate")
        assert (error.detail, error.request_id) == ("must be above 0", "req_1")
        assert str(error) == "training.learning_rate: must be above 0 (invalid_value)"

    def test_every_fault_is_a_line(self) -> None:
        errors = [
            {"code": "invalid_value", "param": "/seed", "detail": "must be positive"},
            {"code": "unknown_field", "param": "/a~1b", "detail": "There is no such field."},
        ]
        first = {"code": "invalid_value", "param": "/seed", "detail": "/seed: must be positive (1 more in errors)"}
        with pytest.raises(ApiError) as caught:
            Script(answer(422, {**first, "errors": errors})).client().create_job({})
        assert caught.value.faults == [
            "seed: must be positive (invalid_value)",
            "a/b: There is no such field. (unknown_field)",
        ]

    @pytest.mark.parametrize("content", [b"<html>Bad gateway</html>", b"", b"[1]", b'{"code": 7, "param": 7}'])
    def test_any_other_body_is_an_error_too(self, content: bytes) -> None:
        script = Script(httpx.Response(404, content=content))
        with pytest.raises(ApiError) as caught:
            script.client().job("job_1")
        assert caught.value.status == 404
        assert caught.value.param is None
        assert caught.value.detail

    def test_no_service(self) -> None:
        script = Script(httpx.ConnectError("refused"))
        with pytest.raises(Unreachable, match="http://service"):
            script.client().job("job_1")

    def test_something_else_at_the_address(self) -> None:
        with pytest.raises(MinillmError, match="JSON"):
            Script(httpx.Response(200, text="<html>")).client().job("job_1")

    @pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://[::1", "http://host:notaport"])
    def test_an_address_that_is_none(self, url: str) -> None:
        with pytest.raises(Unreachable, match="address"):
            Client(url).job("job_1")

    @pytest.mark.parametrize("job_id", ["", "..", "."])
    def test_an_id_that_is_none(self, job_id: str) -> None:
        with pytest.raises(MinillmError):
            Script(answer(200, JOB)).client().job(job_id)

    def test_an_id_stays_one_segment_of_the_path(self) -> None:
        script = Script(answer(404, {"code": "not_found"}))
        with pytest.raises(ApiError):
            script.client().cancel("../files?x=1")
        assert script.requests[0].url.raw_path == b"/v1/jobs/..%2Ffiles%3Fx%3D1/cancel"


class TestSettings:
    def test_address_and_key_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINILLM_URL", "http://elsewhere:1/")
        monkeypatch.setenv("MINILLM_API_KEY", "key_abc")
        script = Script(answer(200, JOB))
        client = Client(transport=httpx.MockTransport(script))
        client.job("job_1")
        assert str(script.requests[0].url) == "http://elsewhere:1/v1/jobs/job_1"
        assert script.requests[0].headers["authorization"] == "Bearer key_abc"

    def test_an_empty_key_sends_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINILLM_API_KEY", "key_abc")
        script = Script(answer(200, JOB))
        Client("http://service", api_key="", transport=httpx.MockTransport(script)).job("job_1")
        assert "authorization" not in script.requests[0].headers


class TestTolerance:
    def test_fields_and_words_of_a_later_version(self) -> None:
        body = {**JOB, "state": "hibernating", "phase": "dreaming", "mood": "calm", "progress": {"step": 3, "eta": 1}}
        job = Script(answer(200, body)).client().job("job_1")
        assert job.state == "hibernating"
        assert not job.is_terminal
        assert job.progress.step == 3
        assert job.model_extra == {"object": "job", "mood": "calm"}


class TestLists:
    def test_every_page_is_read(self) -> None:
        first = {"data": [{**JOB, "id": "job_2"}], "has_more": True, "last_id": "job_2"}
        second = {"data": [JOB], "has_more": False, "last_id": "job_1"}
        script = Script(answer(200, first), answer(200, second))
        assert [job.id for job in script.client().jobs(state="queued")] == ["job_2", "job_1"]
        assert script.requests[1].url.params["after"] == "job_2"
        assert script.requests[1].url.params["state"] == "queued"

    def test_a_limit_is_kept(self) -> None:
        page = {"data": [{**JOB, "id": f"job_{n}"} for n in range(3)], "has_more": True, "last_id": "job_2"}
        script = Script(answer(200, page))
        assert len(script.client().jobs(limit=3)) == 3
        assert len(script.requests) == 1

    def test_pages_come_as_they_are_needed(self) -> None:
        page = {"data": [{**JOB, "id": f"job_{n}"} for n in range(3)], "has_more": True, "last_id": "job_2"}
        script = Script(answer(200, page))
        found = script.client().iter_jobs()
        assert script.requests == []
        assert [next(found).id for _ in range(3)] == ["job_0", "job_1", "job_2"]
        assert len(script.requests) == 1
        next(found)
        assert script.requests[1].url.params["after"] == "job_2"

    def test_the_whole_list_as_one_answer(self) -> None:
        first = {"data": [{**JOB, "id": "job_3"}, {**JOB, "id": "job_2"}], "has_more": True, "last_id": "job_2"}
        script = Script(answer(200, first), answer(200, {"data": [JOB], "has_more": False, "last_id": "job_1"}))
        document = script.client().iter_jobs().document()
        assert document == {
            "object": "list",
            "data": [*first["data"], JOB],
            "has_more": False,
            "first_id": "job_3",
            "last_id": "job_1",
        }
        assert Script(answer(200, first)).client().iter_jobs(limit=1).document()["has_more"] is True
        nothing = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
        assert Script(answer(200, {"data": [], "has_more": False})).client().iter_jobs().document() == nothing

    def test_what_is_no_list(self) -> None:
        with pytest.raises(MinillmError, match="list"):
            Script(answer(200, [])).client().jobs()


class TestWatch:
    def test_each_change_once_until_the_end(self) -> None:
        script = Script(
            answer(200, JOB, etag='"1"'),
            answer(304),
            answer(200, {**JOB, "state": "running"}, etag='"2"'),
            answer(200, {**JOB, "state": "succeeded"}, etag='"3"'),
        )
        assert [job.state for job in script.client().watch("job_1")] == ["queued", "running", "succeeded"]
        assert [request.headers.get("if-none-match") for request in script.requests] == [None, '"1"', '"1"', '"2"']

    def test_an_outage_shorter_than_the_patience_is_survived(self) -> None:
        down = [httpx.ConnectError("refused")] * (2 * (1 + MAX_RETRIES))
        script = Script(answer(200, JOB), *down, answer(200, {**JOB, "state": "failed"}))
        assert [job.state for job in script.client().watch("job_1")] == ["queued", "failed"]

    def test_a_longer_one_is_not(self) -> None:
        script = Script(httpx.ConnectError("refused"))
        with pytest.raises(Unreachable):
            list(script.client().watch("job_1", patience=0.0))

    def test_wait_gives_up_at_its_timeout(self) -> None:
        with pytest.raises(TimeoutError, match="still queued"):
            Script(answer(200, JOB)).client().wait("job_1", timeout=0.0)
