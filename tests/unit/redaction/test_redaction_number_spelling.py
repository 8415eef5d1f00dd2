"""Numbers keep their spelling, and lookalikes of digits are digits."""

from __future__ import annotations

import pytest

from otel_audit.redaction import Redactor
from otel_audit.redaction.normalize import plain_view

redactor = Redactor()


@pytest.mark.parametrize(
    "number",
    ["12345678901234567.89", "0.40000000000000002", "1.10", "1.0", "-0.0", "1e5", "1E+2",
     "100000000000000000000000", "18446744073709551616"],
)  # fmt: skip
def test_a_number_keeps_its_spelling_beside_a_secret(number: str) -> None:
    """Also in a document that stands in a string, and in a list."""
    raw = '{"pin":"x","n":%s,"t":"{\\"pin\\":1,\\"n\\":[%s]}"}' % (number, number)  # noqa: UP031
    told = redactor.json_or_none(raw.encode()).decode()
    assert f'"n":{number},' in told
    assert f'\\"n\\":[{number}]' in told


@pytest.mark.parametrize("number", ["1e400", "-1E+309", "1e-999", "0.01e-400"])
def test_a_number_that_no_double_holds_is_told_as_a_text(number: str) -> None:
    """A reader would make infinity, or nothing, of it, and the store would refuse the row."""
    told = redactor.json_or_none(f'{{"pin":"x","n":{number}}}'.encode())
    assert told == f'{{"pin":"[REDACTED]","n":"{number}"}}'.encode()
    assert redactor.json_or_none(b'{"pin":"x","n":0e-999}') == b'{"pin":"[REDACTED]","n":0e-999}'


@pytest.mark.parametrize("text", ["４１", "٤١", "4\u200b1", "a\u2007b", "𝟒𝟏", "Ｄ８", "ſK"])
def test_a_view_has_a_character_for_each(text: str) -> None:
    """What is found in the view stands at the same place in the text."""
    assert len(plain_view(text)) == len(text)
