"""A pattern is compiled when it is first used, and then is the compiled one."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import re2

from otel_audit._util.lazy_pattern import LazyPattern, compile_patterns


def test_it_is_compiled_by_its_first_use():
    """Until then it is a text; after it the methods are those of the compiled pattern."""
    pattern = LazyPattern("a(b+)")
    assert "search" not in vars(pattern)
    assert pattern.search("xabb")[1] == "bb"
    assert {"search", "finditer", "fullmatch", "sub"} <= set(vars(pattern))
    assert [one[0] for one in pattern.finditer("ab abb")] == ["ab", "abb"]


@pytest.mark.parametrize("compiler", [re2.compile, re.compile])
@pytest.mark.parametrize(
    "text", [b"", b"b", b"ab", b"xxabx", b"a\x00b", "ä ab".encode(), b"a" * 9999]
)
def test_an_occurrence_is_what_a_search_finds(compiler, text):
    """Of re2 it is asked in another way, of others as of any."""
    pattern = LazyPattern(b"a(b+)|^$", None, compiler)
    assert pattern.occurs_in(text) is (pattern.search(text) is not None)


def test_all_can_be_compiled_beforehand():
    """No request waits for it."""
    pattern = LazyPattern(b"a+")
    compile_patterns()
    assert "search" in vars(pattern)


def test_a_mistake_in_a_pattern_is_raised():
    """Not swallowed as a missing attribute."""
    with pytest.raises(Exception, match="missing"):
        LazyPattern("(").search("x")
    with pytest.raises(AttributeError, match="no attribute 'groups'"):
        _ = LazyPattern("a").groups


def test_a_process_that_records_nothing_compiles_nothing(tmp_path):
    """And imports no driver: what is not used costs nothing."""
    program = (
        "import sys, otel_audit_bootstrap; otel_audit_bootstrap.pre_instrument()\n"
        "import otel_audit; assert otel_audit.health()['auditing']\n"
        "from otel_audit.redaction import patterns, prefilter\n"
        "import gc; from otel_audit._util.lazy_pattern import LazyPattern\n"
        "made = [one for one in gc.get_objects() if isinstance(one, LazyPattern)]\n"
        "assert len(made) > 20 and not any('search' in vars(one) for one in made)\n"
        "assert 'asyncpg' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True,
        env={"OTEL_AUDIT_DSN": "postgresql://u@127.0.0.1:1/x", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
