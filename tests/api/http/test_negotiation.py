import pytest

from api.http.negotiation import accepted


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "a/b"),
        ("*/*", "a/b"),
        ("text/csv", "text/csv"),
        ("text/*", "text/csv"),
        ("a/b;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0, */*", "a/b"),
        ("a/b;q=0", None),
        ("text/csv;q=x", None),
    ],
)
def test_accept(header: str | None, expected: str | None) -> None:
    assert accepted(header, ("a/b", "text/csv")) == expected
