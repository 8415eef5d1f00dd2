"""Caches that are bounded and need no lock."""

from __future__ import annotations

import threading

import pytest

from otel_audit._util.cache import BoundedCache, Memo, are_few_names


class TestBoundedCache:
    def test_what_is_used_stays(self) -> None:
        """An entry that is asked for again and again outlives any number of others."""
        cache: BoundedCache[int, str] = BoundedCache(10)
        cache.put(-1, "kept")
        for number in range(1000):
            cache.put(number, str(number))
            assert cache.get(-1) == "kept"
            assert len(cache) <= 10
        assert cache.get(0) is None

    def test_it_forgets_everything_when_told_so(self) -> None:
        """Both generations are cleared."""
        cache: BoundedCache[int, str] = BoundedCache(2)
        for number in range(3):
            cache.put(number, "x")
        cache.clear()
        assert [cache.get(number) for number in range(3)] == [None] * 3

    def test_one_is_forgotten_when_told_so(self) -> None:
        """In the young generation and in the old one; others stay."""
        cache: BoundedCache[int, str] = BoundedCache(2)
        for number in range(4):
            cache.put(number, "x")
        for number in (0, 3, 7):
            cache.discard(number)
        assert [cache.get(number) for number in range(4)] == [None, "x", "x", None]

    def test_threads_share_it(self) -> None:
        """Whatever they do at once, each finds its own value or none."""
        cache: BoundedCache[int, int] = BoundedCache(5)
        wrong: list[int] = []

        def use() -> None:
            for number in range(20_000):
                key = number % 17
                cache.put(key, key)
                if cache.get(key) not in (None, key):
                    wrong.append(key)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class TestMemo:
    def test_it_calls_once(self) -> None:
        """None is an argument like any other."""
        made: list[str | None] = []

        def make(text: str | None) -> str:
            made.append(text)
            return f"<{text}>"

        memo = Memo(make, 10)
        assert [memo[text] for text in ("a", None, "a", None)] == ["<a>", "<None>"] * 2
        assert made == ["a", None]

    def test_it_is_bounded(self) -> None:
        """In how many results it keeps, and by what is worth keeping."""
        memo = Memo(str.upper, 10, lambda text: len(text) < 5)
        for number in range(100):
            assert memo[f"a{number}"] == f"A{number}"
            assert len(memo) <= 10
        assert memo["too long"] == "TOO LONG"
        assert "too long" not in memo

    def test_what_cannot_be_made_is_the_callers(self) -> None:
        """The error is raised each time, and nothing is kept."""
        memo = Memo(int, 10)
        for _ in range(2):
            with pytest.raises(ValueError, match="invalid literal"):
                memo["x"]
        assert not memo


@pytest.mark.parametrize(
    ("names", "few"),
    [((), True), (("a", "b"), True), (("a",) * 129, False), (("a" * 8193,), False)],
)
def test_names_that_a_sender_chooses_are_kept_only_if_few(
    names: tuple[str, ...], few: bool
) -> None:
    """Both their number and their letters are bounded."""
    assert are_few_names(names) is few
