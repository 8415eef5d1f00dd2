"""The redactor's settings, modes, bounds, and its way of saying what it did."""

from __future__ import annotations

import ast
import json
import logging
import re
import threading
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from otel_audit._util import ratelimited_log
from otel_audit.config import AuditConfig
from otel_audit.errors import ConfigurationError
from otel_audit.redaction import Finding, Limits, Redactor, placeholders
from otel_audit.redaction.hashing import KeyedHash

KEYED = KeyedHash("k2", b"current key", {"k1": b"earlier key"})


class TestFromConfig:
    def test_adds_names_to_the_defaults(self) -> None:
        """Names of the settings count in every style; the built-in ones stay."""
        redactor = Redactor.from_config(AuditConfig(redact_fields=("nationalId", "*_internal")))
        found = redactor.document(
            {"national_id": 1, "NATIONAL-ID": 2, "noteInternal": 3, "password": 4, "internal": 5}
        )
        assert found == {
            "national_id": "[REDACTED]", "NATIONAL-ID": "[REDACTED]", "noteInternal": "[REDACTED]",
            "password": "[REDACTED]", "internal": 5,
        }  # fmt: skip
        assert redactor.json_or_none(b'{"nationalid":1}') == b'{"nationalid":"[REDACTED]"}'
        assert redactor.json_or_none(b'{"x_internal":1}') == b'{"x_internal":"[REDACTED]"}'

    def test_takes_names_in_any_script(self) -> None:
        """A name counts as it stands, whatever its letters; a digit in it is not the name."""
        redactor = Redactor.from_config(
            AuditConfig(redact_fields=("пароль2", "姓名", "поле1", "*имя"))
        )
        found = redactor.document(
            {"姓名": 1, "Поле1": 2, "1": 3, "字段1": 4, "полноеимя": 5, "имя": 6}
        )
        assert found == {
            "姓名": "[REDACTED]", "Поле1": "[REDACTED]", "1": 3, "字段1": 4,
            "полноеимя": "[REDACTED]", "имя": "[REDACTED]",
        }  # fmt: skip
        assert redactor.text("поле1=abc") == "поле1=[REDACTED]"

    def test_allows_names(self) -> None:
        """An allowed name is innocent, its value still free of credentials."""
        redactor = Redactor.from_config(AuditConfig(redact_allow=("token", "order_no")))
        assert redactor.document({"token": "abc", "orderNo": "4111111111111111"}) == {
            "token": "abc", "orderNo": "4111111111111111",
        }  # fmt: skip
        assert "eyJ" not in redactor.field("token", "eyJhbGciOi.eyJzdWIiOi.c2ln")

    def test_names_to_redact_count_as_parts_of_a_name(self) -> None:
        """A form nests names in brackets; a header begins with x-. Other names that end so do not."""
        redactor = Redactor.from_config(AuditConfig(redact_fields=("diagnosis", "*_note")))
        names = (
            "patient[diagnosis]", "patient[0][Diagnosis]", "diagnosis[0]", "diagnosis[en]",
            "x-diagnosis", "X_DIAGNOSIS", "x-diagnosis[]", "patient[my_note]",
            "patient[x_diagnosis]", "patient[x-diagnosis][0]", "patient[diagnosis]x",
            "x-x-diagnosis", "x_X-diagnosis", "]patient[x-x-diagnosis", "patient[x_my_note]",
        )  # fmt: skip
        taken = [name for name in names if redactor.field(name, "flu") == "[REDACTED]"]
        assert taken == list(names)
        form = "patient%5Bdiagnosis%5D=flu&patient[diagnosis]=flu&room=7"
        assert "flu" not in redactor.query(form)
        assert redactor.text("patient[diagnosis]=flu") == "patient[diagnosis]=[REDACTED]"
        others = ("patient_diagnosis", "xdiagnosis", "diagnosis_code", "patient[code]", "x-ray")
        kept = [name for name in others if redactor.field(name, "flu") == "flu"]
        assert kept == list(others)

    def test_a_name_to_redact_may_itself_begin_so(self) -> None:
        """What stands before it is one more x-."""
        redactor = Redactor(fields=["x-ray"])
        names = ("x-ray", "patient[X-Ray]", "x-x-ray", "patient[x_x_ray]")
        assert [name for name in names if redactor.field(name, "flu") == "[REDACTED]"] == [*names]
        assert redactor.field("patient[ray]", "flu") == "flu"

    @pytest.mark.parametrize("name", ["user[pin][0]", "pin[0]", "user[x-pin][1]", "user[pin]x"])
    def test_brackets_hide_no_built_in_name(self, name: str) -> None:
        """A number in brackets only counts, and some readers ignore what follows them."""
        assert Redactor().field(name, "1234") == "[REDACTED]"

    def test_a_built_in_name_that_has_parts_is_another(self) -> None:
        """Its last part says what a value is."""
        for name in ("pin[color]", "pin[color][0]", "user[auth][method]", "items[0][name]", "[0]"):
            assert Redactor().field(name, "blue") == "blue"

    def test_a_name_of_very_many_parts_is_not_judged_but_redacted(self) -> None:
        """Nobody nests a form so; to judge all of its parts costs more than it may."""
        redactor = Redactor(fields=["diagnosis"], allow=["".join(f"a{n}[" for n in range(20))])
        assert redactor.field("".join(f"b{n}[" for n in range(20)), "flu") == "[REDACTED]"
        assert redactor.field("".join(f"a{n}[" for n in range(20)), "flu") == "flu"
        assert redactor.field("a[" * 400, "flu") == "flu"
        assert redactor.field("a[" * 400 + "diagnosis]", "flu") == "[REDACTED]"
        assert Redactor().field("".join(f"b{n}[" for n in range(20)), "flu") == "flu"

    def test_a_whole_name_to_allow_wins_over_a_part_to_redact(self) -> None:
        """Who redacts each `name` can take one of them back; a pattern does not take so many back."""
        redactor = Redactor(fields=["name"], allow=["product[name]", "x-name", "shop*", "*name"])
        kept = ("product[name]", "Product[Name]", "X-Name")
        assert [name for name in kept if redactor.field(name, "tea") == "tea"] == [*kept]
        taken = ("name", "user[name]", "x-x-name", "shop[name]", "x_product[name]")
        assert [one for one in taken if redactor.field(one, "tea") == "[REDACTED]"] == [*taken]

    def test_names_to_allow_are_whole_names(self) -> None:
        """The header X-Pin may hold the credential itself: it is allowed by its own name."""
        names = ("pin", "Pin", "x-pin", "user_pin", "user[pin]")

        def readable(*allowed: str) -> list[str]:
            redactor = Redactor.from_config(AuditConfig(redact_allow=allowed))
            return [name for name in names if redactor.field(name, "1234") == "1234"]

        assert readable() == []
        assert readable("pin") == ["pin", "Pin"]
        assert readable("pin", "x-pin") == ["pin", "Pin", "x-pin"]
        assert readable("*pin") == list(names)

    def test_redacts_what_is_named_in_both_lists(self) -> None:
        """In doubt for redaction."""
        redactor = Redactor(fields=["note"], allow=["note"])
        assert redactor.field("note", "x") == "[REDACTED]"

    def test_follows_paths(self) -> None:
        """A path reaches through keys of any style and through lists."""
        redactor = Redactor.from_config(
            AuditConfig(redact_paths=("customer.*.iban", "orders.*.lines.*.note", "**.deep_note"))
        )
        found = redactor.document(
            {
                "Customer": {"bank": {"IBAN": "any"}, "note": 1},
                "orders": [{"lines": [{"note": "n"}], "note": "kept"}],
                "a": [{"b": {"deepNote": 1}}],
                "payload": '{"x":{"deep_note":"z"}}',
            }
        )
        assert found == {
            "Customer": {"bank": {"IBAN": "[REDACTED]"}, "note": 1},
            "orders": [{"lines": [{"note": "[REDACTED]"}], "note": "kept"}],
            "a": [{"b": {"deepNote": "[REDACTED]"}}],
            "payload": '{"x":{"deep_note":"[REDACTED]"}}',
        }
        assert (
            redactor.json_or_none(b'{"a":{"deep_note":1}}') == b'{"a":{"deep_note":"[REDACTED]"}}'
        )

    def test_switches_value_rules(self) -> None:
        """E-mail is off by default; rules that go by looks can be switched off."""
        plain, chosen = (
            Redactor(),
            Redactor.from_config(AuditConfig(redact_emails=True, redact_rules_off=("card",))),
        )
        text = "jane@example.com 4111111111111111 219-09-9999"
        assert plain.text(text) == "jane@example.com [REDACTED] [REDACTED]"
        assert chosen.text(text) == "[REDACTED] 4111111111111111 [REDACTED]"

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"redact_mode": "hmac"}, "OTEL_AUDIT_HMAC_KEY"),
            ({"hmac_key_file": "/nonexistent/key"}, "OTEL_AUDIT_HMAC_KEY_FILE"),
            ({"redact_rules_off": ("jwt",)}, "OTEL_AUDIT_REDACT_RULES_OFF"),
            ({"redact_mode": "mask"}, "OTEL_AUDIT_REDACT_MODE"),
            ({"hmac_key_id": "a:b"}, "OTEL_AUDIT_HMAC_KEY_ID"),
            ({"redact_fields": ("--",)}, "OTEL_AUDIT_REDACT_FIELDS"),
            ({"redact_allow": ("**",)}, "OTEL_AUDIT_REDACT_ALLOW"),
        ],
    )
    def test_refuses_a_wrong_setting(self, settings: dict[str, Any], named: str) -> None:
        """The error names the setting."""
        with pytest.raises(ConfigurationError, match=named):
            Redactor.from_config(AuditConfig(**settings))

    def test_reads_the_key_from_a_file(self, tmp_path: Any) -> None:
        """White space around the key does not count; an empty file is refused."""
        file = tmp_path / "key"
        file.write_text("current key\n")
        config = AuditConfig(hmac_key_file=file, hmac_key_id="k2")
        assert Redactor.from_config(config).hashed("x") == KEYED.of("x")
        file.write_text("\n")
        with pytest.raises(ConfigurationError, match="empty"):
            Redactor.from_config(config)


class TestModes:
    def test_leaves_out_what_has_a_name(self) -> None:
        """In mode omit an entry, parameter or header disappears; a mere value is replaced."""
        redactor = Redactor(mode="omit")
        assert redactor.document({"password": "x", "a": [{"pin": 1}], "t": "pin=12"}) == {
            "a": [{}],
            "t": "pin=[REDACTED]",
        }
        assert redactor.query("a=1&password=x&b=2") == "a=1&b=2"
        assert (
            redactor.headers([(b"cookie", b"x"), (b"x-token", b"y")], ["cookie", "x-token"]) == {}
        )
        assert redactor.field("password", "x") == "[REDACTED]"

    def test_hashes(self) -> None:
        """In mode hmac equal values have equal hashes, whatever the type they came in."""
        redactor = Redactor(mode="hmac", keyed_hash=KEYED)
        found = redactor.document({"pin": 1234, "user": {"PIN": "1234"}, "card_pin": "12345"})
        assert found["pin"] == found["user"]["PIN"] == redactor.hashed("1234")
        assert found["card_pin"] != found["pin"]
        assert found["pin"].startswith("hmac:k2:")
        assert len(found["pin"]) == len("hmac:k2:") + 64
        assert redactor.document(found) == found
        assert redactor.text("pay 4111111111111111") == "pay " + redactor.hashed("4111111111111111")

    def test_hashes_by_the_standard(self) -> None:
        """HMAC-SHA-256 as in RFC 4231, test case 2."""
        keyed = KeyedHash("k1", b"Jefe")
        assert keyed.of("what do ya want for nothing?") == (
            "hmac:k1:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        )

    def test_finds_what_was_hashed_before_a_rotation(self) -> None:
        """The candidates hold the hash under every key, the current one first."""
        old = KeyedHash("k1", b"earlier key").of("x")
        assert KEYED.candidates("x") == [Redactor(keyed_hash=KEYED).hashed("x"), old]

    def test_replaces_where_there_is_no_key(self) -> None:
        """Never a plain hash: short secrets can be guessed."""
        assert Redactor().hashed("x") == "[REDACTED]"
        assert KeyedHash().candidates("x") == []

    def test_never_shows_a_key(self) -> None:
        """The key is in no representation."""
        assert "current key" not in repr(KEYED) + repr(Redactor(keyed_hash=KEYED)._rules)

    @pytest.mark.parametrize("mark", ["redact", "omit", "hash"])
    def test_heeds_a_mark(self, mark: Any) -> None:
        """What the application says of a field decides."""
        redactor = Redactor(keyed_hash=KEYED)
        expected = redactor.hashed("x") if mark == "hash" else "[REDACTED]"
        assert redactor.field("note", "x", mark=mark) == expected
        assert redactor.field("note", None, mark=mark) in (None, "[REDACTED]")


class TestValues:
    def test_spells_pythons_types(self) -> None:
        """Dates, numbers and identifiers become what JSON can hold."""
        moment = datetime(2025, 11, 21, 21, 59, tzinfo=UTC)
        found = Redactor().document(
            {
                "at": moment, "on": date(2025, 1, 2), "took": timedelta(seconds=1.5),
                "price": Decimal("1.10"), "id": UUID(int=1), "path": PurePosixPath("/a"),
                "set": {1}, "nan": float("nan"), "inf": float("-inf"), 5: "int key", None: 1,
                (1, 2): "tuple key",
            }
        )  # fmt: skip
        assert found == {
            "at": "2025-11-21T21:59:00+00:00", "on": "2025-01-02", "took": "PT1.5S", "price": "1.10",
            "id": "00000000-0000-0000-0000-000000000001", "path": "/a", "set": [1], "nan": "NaN",
            "inf": "-Infinity", "5": "int key", "null": 1, "[WITHHELD]": "tuple key",
        }  # fmt: skip

    def test_describes_bytes(self) -> None:
        """Binary data is a size, and a hash if it is too long to be guessed."""
        found = Redactor().document([b"short", b"x" * 64])
        assert found[0] == {"_binary": True, "_size": 5}
        assert found[1]["_size"] == 64
        assert len(found[1]["_sha256"]) == 64

    def test_cleans_what_no_store_takes(self) -> None:
        """NUL and lone surrogates become U+FFFD, in keys, values and texts."""
        redactor = Redactor()
        assert redactor.document({"a\0": "b\0", "\ud800": "\udfff"}) == {
            "a\ufffd": "b\ufffd", "\ufffd": "\ufffd",
        }  # fmt: skip
        assert redactor.json_or_none(b'{"a":"\\u0000\\ud800"}') == '{"a":"\ufffd\ufffd"}'.encode()
        assert redactor.text("a\0b") == "a\ufffdb"
        assert redactor.path("/a\0") == "/a\ufffd"

    def test_loses_no_entry_to_equal_keys(self) -> None:
        """Keys that are equal after redaction are kept apart."""
        found = Redactor().document(
            {"4111111111111111": 1, "5555555555554444": 2, 1: "a", "1": "b"}
        )
        assert sorted(map(str, found.values())) == ["1", "2", "a", "b"]

    def test_reads_what_python_reads(self) -> None:
        """JSON with NaN or enormous numbers is no way around."""
        redactor = Redactor()
        assert json.loads(redactor.json_or_none(b'{"a":NaN,"password":Infinity}')) == {
            "a": "NaN", "password": "[REDACTED]",
        }  # fmt: skip
        assert json.loads(redactor.json_or_none(b'{"a":1e999,"pin":"x"}')) == {
            "a": "1e999", "pin": "[REDACTED]",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "raw", [b"", b"{", b'{"a":}', b"\xff", b'"\xff"', b'{"a":1}x', b"'a'", b'"a\x01"', b"{}{}"]
    )
    def test_withholds_what_is_not_json(self, raw: bytes) -> None:
        """What cannot be parsed is not passed on."""
        assert Redactor().json_or_none(raw) is None


class TestBounds:
    def test_withholds_what_is_too_deep(self) -> None:
        """Nesting beyond the bound, and cycles, end."""
        redactor = Redactor(limits=Limits(depth=3))
        assert redactor.document([[["x"]]]) == [[["x"]]]
        assert redactor.document([[[["x"]]]]) == [[["[WITHHELD]"]]]
        assert redactor.json_or_none(b'[[[["x"]]]]') == b'[[["[WITHHELD]"]]]'
        cycle: list[Any] = []
        cycle.append(cycle)
        assert redactor.document(cycle) == [[["[WITHHELD]"]]]
        assert redactor.json_or_none(b"[" * 100_000 + b"]" * 100_000) is None
        deep: Any = "x"
        for _ in range(6):
            deep = json.dumps([deep])
        assert "[WITHHELD]" in redactor.text(deep + " ") or "x" in redactor.text(deep)

    def test_withholds_what_is_too_much(self) -> None:
        """Values beyond the bound are counted, not kept."""
        redactor = Redactor(limits=Limits(nodes=4))
        assert redactor.document([1, 2, 3, 4, 5, 6]) == [1, 2, 3, "[WITHHELD]"]
        assert redactor.document({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}) == {
            "a": 1, "b": 2, "c": 3, "[WITHHELD]": 2,
        }  # fmt: skip

    def test_withholds_what_is_too_long(self) -> None:
        """Text beyond the bound is not passed on."""
        redactor = Redactor(limits=Limits(length=10))
        assert redactor.document(["x" * 6, "y" * 6, "z"]) == ["x" * 6, "[WITHHELD]", "[WITHHELD]"]
        assert redactor.text("x" * 11) == "[WITHHELD]"
        assert redactor.query("x" * 11) == "%5BWITHHELD%5D"
        assert redactor.json_or_none(b'"0123456789"') is None

    def test_withholds_numbers_too_long_to_spell(self) -> None:
        """An enormous integer is not worth its conversion."""
        assert Redactor().document([10**5000, 2**4000]) == ["[WITHHELD]", 2**4000]
        assert Redactor().json_or_none(b"[" + b"1" * 5000 + b"]") is None

    @pytest.mark.parametrize(
        "text",
        [
            "a=" * 50_000,
            "a=(" * 30_000,
            "password=" * 10_000,
            'a="' * 30_000,
            "<a" * 50_000,
            "4" * 100_000,
            "4 " * 50_000,
            "%25" * 30_000,
            "\\u0041" * 20_000,
            "eyJ" * 30_000,
            "://" * 30_000,
            "bearer " * 14_000,
            "DE00" * 25_000,
            "-----BEGIN PRIVATE KEY-----" * 3_000,
            "{" * 50_000,
            '{"a":' * 10_000,
            "a" * 100_000 + "!",
            "password" * 12_000,
            "key:" * 25_000,
            "token: " * 14_000,
            "[parameters: " * 7_000,
            "\\" * 100_000,
            "/reset/" * 14_000,
            "/reset/a/" * 11_000,
            "?code=" * 16_000,
            "?" + "&code=aaaaaaaaaaaaaaa1" * 4_000 + "&state=1",
            "key (a)=(" * 11_000,
            "key (" * 20_000,
            "password '" * 10_000,
            "password 'x' " * 8_000,
            "'loc': 'input': " * 6_000,
            " -u a:b" * 14_000,
            "mysql -p" * 12_000,
            "$1 = '" * 16_000,
            'value "' * 14_000,
            'invalid input syntax for x: "' * 3_000,
            "identified by " * 7_000,
            "crypt(" * 16_000,
            "\uff14" * 30_000,
            "4\u200b" * 30_000,
            "\u043f\u0430\u0440\u043e\u043b\u044c " * 10_000,
            "a@" * 40_000,
            '"a@' * 30_000,
            "sk-" * 30_000,
            "password: $a " * 7_000,
        ],
        ids=lambda text: text[:12],
    )
    def test_takes_hostile_texts_in_linear_time(self, text: str) -> None:
        """The test's time limit is generous; a quadratic pattern would exceed it by far."""
        redactor = Redactor()
        redactor.text(text)
        redactor.json_or_none(json.dumps({"x": text}).encode())
        redactor.query(text)


class TestExplain:
    def test_names_paths_and_rules(self) -> None:
        """Every finding says where and why, in the order of the document."""
        redactor = Redactor(fields=["note"], paths=["a.*.b"])
        findings = redactor.explain(
            {
                "user": {"passwd": "x", "cards": ["4111111111111111", "free"]},
                "a": {"k": {"b": 1}}, "note": 1, "payload": '{"apiKey":"y"}',
                "env": [{"name": "DB_PWD", "value": "z"}],
                "key": SecretStr("x"), "odd": object(),
            }
        )  # fmt: skip
        assert findings == [
            Finding("user.passwd", "name:passwd"),
            Finding("user.cards[0]", "value:card"),
            Finding("a.k.b", "path:a.*.b"),
            Finding("note", "name:configured"),
            Finding("payload.apiKey", "name:apikey"),
            Finding("env[0].value", "named_beside"),
            Finding("key", "mark:redact"),
            Finding("odd", "unknown_type"),
        ]

    def test_never_shows_a_value(self) -> None:
        """Also not one that is a key."""
        findings = Redactor().explain({"4111111111111111": {"password": "x"}})
        assert "4111" not in repr(findings)
        assert len(findings) == 2


class TestSafety:
    @pytest.mark.allow_errors
    def test_raises_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        """A container that fails while it is read is withheld, with a line in the log."""

        class Failing(dict[str, Any]):
            def items(self) -> Any:
                raise RuntimeError("secret detail")

        ratelimited_log.forget()
        with caplog.at_level(logging.WARNING):
            assert Redactor().document({"a": Failing(b=1)}) == "[WITHHELD]"
        assert "withheld" in caplog.text
        assert "secret detail" not in caplog.text

    def test_is_shared_by_threads(self) -> None:
        """Concurrent use gives the same results."""
        redactor = Redactor()
        wrong: list[Any] = []

        def work(number: int) -> None:
            for step in range(200):
                name = f"field_{number}_{step}"
                expected = {name: step, "password": "[REDACTED]"}
                if redactor.document({name: step, "password": name}) != expected:
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class TestHeaders:
    def test_keeps_the_chosen_ones(self) -> None:
        """Names in lower case, repeated ones joined."""
        pairs = [(b"Accept", b"a"), (b"X-Other", b"b"), (b"accept", b"c"), (b"x-bin", b"\xe9\x00")]
        assert Redactor().headers(pairs, ["accept", "x-bin"]) == {
            "accept": "a, c", "x-bin": "\xe9\ufffd",
        }  # fmt: skip


@pytest.mark.parametrize(
    "placeholder",
    sorted(
        value
        for name, value in vars(placeholders).items()
        if name.isupper() and isinstance(value, str) and name != "TRUNCATED"
    ),
)
def test_placeholders_stay_as_they_are(placeholder: str) -> None:
    """What stands for a removed value is not removed again: it says why the value is not there."""
    assert Redactor().document({"password": placeholder}) == {"password": placeholder}


def test_placeholders_stand_in_one_module() -> None:
    """No other module spells one: the rules would not know it."""
    package = Path(placeholders.__file__).parents[1]
    found = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"\[(?:REDACTED|WITHHELD|TRUNCATED).*\]", node.value)
    }
    assert found == {"placeholders.py"}
