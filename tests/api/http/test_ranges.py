import pytest

from api.http.problems import RangeNotSatisfiable
from api.http.ranges import byte_range, none_match, strong_tags

ETAG = '"abc"'


class TestNoneMatch:
    @pytest.mark.parametrize("header", ['"abc"', 'W/"abc"', '"x", "abc"', "*", '"x" , W/"abc"'])
    def test_names_the_tag(self, header: str) -> None:
        assert none_match(header, ETAG)

    @pytest.mark.parametrize("header", [None, "", '"abcd"', "abc", '"ABC"'])
    def test_does_not(self, header: str | None) -> None:
        assert not none_match(header, ETAG)


def test_strong_tags_leave_weak_ones_out() -> None:
    assert strong_tags('"a", W/"b" , "c.1"') == ["a", "c.1"]
    assert strong_tags("*") == []


class TestByteRange:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("bytes=0-0", (0, 1)),
            ("bytes=2-", (2, 10)),
            ("bytes=-3", (7, 10)),
            ("bytes=-30", (0, 10)),
            ("bytes=5-100", (5, 10)),
            ("BYTES=1-2", (1, 3)),
        ],
    )
    def test_single(self, header: str, expected: tuple[int, int]) -> None:
        assert byte_range(header, None, etag=ETAG, size=10) == expected

    @pytest.mark.parametrize("header", [None, "bytes=-", "bytes=5-2", "lines=0-1", "bytes", "bytes=a-b", "bytes=0-1-2"])
    def test_malformed_is_ignored(self, header: str | None) -> None:
        assert byte_range(header, None, etag=ETAG, size=10) is None

    @pytest.mark.parametrize(
        "header", ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=0-1,3-4", "bytes=" + "0-," * 5000]
    )
    def test_refused(self, header: str) -> None:
        with pytest.raises(RangeNotSatisfiable) as caught:
            byte_range(header, None, etag=ETAG, size=10)
        assert caught.value.headers == {"Content-Range": "bytes */10"}

    def test_numbers_of_any_length(self) -> None:
        with pytest.raises(RangeNotSatisfiable):
            byte_range("bytes=" + "9" * 6000 + "-", None, etag=ETAG, size=10)

    def test_if_range(self) -> None:
        assert byte_range("bytes=1-2", ETAG, etag=ETAG, size=10) == (1, 3)
        assert byte_range("bytes=1-2", '"old"', etag=ETAG, size=10) is None
        assert byte_range("bytes=1-2", 'W/"abc"', etag=ETAG, size=10) is None
