"""How values of settings are read, and how wrong ones are refused: lists, maps, paths, variables.

`config.py` lists the settings.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, NoDecode

from otel_audit._util.postgres_dsn import read_dsn, role_of
from otel_audit._util.printable import visible
from otel_audit.errors import ConfigurationError

PREFIX = "OTEL_AUDIT_"
CONFIG_FILE = f"{PREFIX}CONFIG_FILE"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
"""A header's name, by RFC 9110; or none."""

SHOWN = 200
"""Characters of a name that a message shows at most."""

_LONGEST_PATH = 4096
"""Characters of a path: ``PATH_MAX`` of Linux."""

_EMPTY_IS_A_VALUE = frozenset({"request_id_header"})
"""Settings of which an empty value in the environment has a meaning of its own: none."""

_LISTS_OF_PATHS = ("anchor", "verify_keys")
TEXTS_WITH_PATHS = frozenset({"archive", *_LISTS_OF_PATHS})
"""Settings that are no `Path`, and may name one all the same: ``~`` is expanded there, too."""
_BEFORE_PATH = re.compile(r"(?:file:|dir:)?(?=~)")

_OF_ORCHESTRATOR = re.compile(
    r"OTEL_AUDIT(?:_[A-Z0-9]+)*_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every pod where a Service's name is, or begins with, otel-audit."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NOUN = re.compile("[a-z][a-z0-9_]*")


def listed(value: object) -> object:
    """Read a list from JSON or from comma-separated words."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return _json(text)
    return tuple(word.strip() for word in text.split(",") if word.strip())


def mapped(value: object) -> object:
    """Read a map from JSON or from comma-separated ``key=value`` pairs."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        return _json(text)
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if any(not middle for _, middle, _ in pairs):
        raise ValueError("expected a JSON object or comma-separated key=value pairs")
    return {key.strip(): word.strip() for key, _, word in pairs}


def mapped_percent_decoded(value: object) -> object:
    """Read a map as OpenTelemetry writes headers: JSON, or pairs that are percent-encoded."""
    found = mapped(value)
    if not isinstance(value, str) or not isinstance(found, dict) or value.strip().startswith("{"):
        return found
    return {unquote(name): unquote(word) for name, word in found.items()}


def none_if_off(value: object) -> object:
    """Read the word ``off``: the environment and TOML have no other way to write None."""
    return None if isinstance(value, str) and value.strip().lower() == "off" else value


def _json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def header_name(name: str) -> str:
    """Refuse what is not a header's name."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("not a header's name: letters, digits and -")
    return name


def header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """As `header_name`, of several."""
    return tuple(map(header_name, names))


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
HeaderName = Annotated[str, AfterValidator(header_name)]


def _nouns(value: object) -> object:
    """Read a map to nouns: what stands in an entity's reference before its key."""
    found = mapped(value)
    if isinstance(found, Mapping):
        for place, noun in enumerate(found.values(), 1):
            if not _NOUN.fullmatch(str(noun)):
                raise ValueError(f"entry {place}: expected a noun such as order or order_line")
    return found


OptionalSeconds = Annotated[float | None, BeforeValidator(none_if_off)]
EntityNames = Annotated[dict[str, str], NoDecode, BeforeValidator(_nouns)]
Aliases = Annotated[dict[str, str], NoDecode, BeforeValidator(mapped)]


def check_words(setting: str, words: Sequence[str], known: Sequence[str]) -> None:
    """See whether a list holds none but known words; what it holds instead is not shown.

    Args:
        setting: The variable's name, or where else the list is from.
        words: The list.
        known: What may be in it.

    Raises:
        ConfigurationError: It holds another word.
    """
    for place, word in enumerate(words, 1):
        if word not in known:
            near = _near(word[:SHOWN], known)
            raise ConfigurationError(f"{setting}: word {place} is none of {', '.join(known)}{near}")


class EnvironmentSource(EnvSettingsSource):
    """The environment, where an empty value says nothing, as with OpenTelemetry's own variables."""

    def __call__(self) -> dict[str, Any]:
        """Return what is said."""
        return {
            name: value
            for name, value in super().__call__().items()
            if name in _EMPTY_IS_A_VALUE or not (isinstance(value, str) and not value.strip())
        }

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Look for a variable; most are not set, and to find that out must cost little."""
        if f"{self.env_prefix}{field_name}".lower() not in self.env_vars:
            return None, field_name, False
        return super().get_field_value(field, field_name)

    def prepare_field_value(
        self,
        field_name: str,
        field: FieldInfo,
        value: Any,
        value_is_complex: bool,  # noqa: FBT001 - the library calls it so
    ) -> Any:
        """Read a variable's text, if there is one."""
        if value is None:
            return None
        return super().prepare_field_value(field_name, field, value, value_is_complex)


def no_path(text: str) -> str | None:
    """Say why a text is no path; None if it may be one."""
    if len(text) > _LONGEST_PATH:
        return "longer than any path"
    # else a directory of that name would be made, with the password in it
    return "a URL, and a path is needed" if "://" in text else None


def at_home(name: str, value: object) -> object:
    """Put the user's home directory where ``~`` stands at the beginning of a path."""
    if name in _LISTS_OF_PATHS:
        with contextlib.suppress(ValueError):  # the setting's own reading says what is wrong
            value = listed(value)
    setting = f"{PREFIX}{name.upper()}"
    if isinstance(value, tuple | list):
        return tuple(path_at_home(setting, one) for one in value)
    return path_at_home(setting, value)


def path_at_home(setting: str, value: object) -> object:
    """As `at_home`, of one value of a setting that is given by its variable's name."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    found = _BEFORE_PATH.match(text)
    if found is None:
        return value
    return found[0] + str(expanded(setting, text[found.end() :]))


def expanded(setting: str, path: str) -> Path:
    """Put the user's home directory in the place of ``~``.

    Raises:
        ValueError: There is none; the message names the setting.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{setting}: begins with ~, and there is no such user, or none with a home directory; "
            "write the path in full"
        ) from None


def unreadable(value: object, *, secret: bool) -> str | None:
    """Say what no setting may hold: what is not Unicode, and control characters."""
    if isinstance(value, Mapping):
        both = (*value.keys(), *value.values())
        return next((why for one in both if (why := unreadable(one, secret=secret))), None)
    if isinstance(value, list | tuple | set | frozenset):
        return next((why for one in value if (why := unreadable(one, secret=secret))), None)
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds bytes that are not UTF-8"
    return "holds a control character" if not secret and _CONTROL.search(value) else None


def user_state_directory(setting: str) -> Path:
    """Find where this user's programs keep what must outlive them.

    Args:
        setting: What to set where there is no such place.

    Raises:
        ConfigurationError: This user has no home directory.
    """
    # not needed where the directory is named
    from platformdirs import user_state_path

    try:
        return user_state_path("otel-audit")
    except RuntimeError:
        # a container's uid without an entry in passwd, and no HOME
        raise ConfigurationError(
            f"{setting}: missing, and user {os.getuid()} has no home directory to put it in; name "
            "a directory that only this user may write"
        ) from None


def is_set_true(setting: str) -> bool:
    """Return whether a variable of the environment is true, whatever else may be wrong there.

    Args:
        setting: The field's name, such as ``required``.
    """
    word = os.environ.get(f"{PREFIX}{setting.upper()}", "")
    return word.strip().lower() in ("1", "true", "yes", "on", "y", "t")


def is_set_false(setting: str) -> bool:
    """Return whether a variable of the environment is false; see `is_set_true`."""
    word = os.environ.get(f"{PREFIX}{setting.upper()}", "")
    return word.strip().lower() in ("0", "false", "no", "off", "n", "f")


def refuse_unfit_dsn(name: str, dsn: SecretStr) -> None:
    """Refuse a DSN that cannot be read, or that names no user where none can be found.

    Raises:
        ValueError: It is unfit; the message names the setting.
    """
    try:
        read = read_dsn(dsn.get_secret_value())
    except ValueError as error:
        raise ValueError(f"{PREFIX}{name}: {error}") from None
    if role_of(read.url) is None and "service=" not in read.url and not _has_name():
        raise ValueError(
            f"{PREFIX}{name}: names no user, and user {os.getuid()} of this system has no name to "
            "log in by; write postgresql://USER@…"
        )


def _has_name() -> bool:
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a uid of a container that nobody has entered into passwd
        return False
    return True


def refuse_unknown_variables(environment: Mapping[str, str], settings: Collection[str]) -> None:
    """Refuse variables that begin like a setting's, and are none.

    Args:
        environment: The variables.
        settings: The names of all fields.

    Raises:
        ConfigurationError: There is one; the message names the nearest setting.
    """
    known = {f"{PREFIX}{name.upper()}" for name in settings} | {CONFIG_FILE}
    unknown = sorted(
        name
        for name in environment
        if name.upper().startswith(PREFIX)
        and name not in known
        and not _OF_ORCHESTRATOR.fullmatch(name)
    )
    if unknown:
        errors = (_unknown(name[:SHOWN], known) for name in unknown)
        raise ConfigurationError(visible("; ".join(errors)))


def _unknown(name: str, known: set[str]) -> str:
    return f"{name}: there is no such setting{_near(name.upper(), sorted(known))}"


def _near(word: str, known: Sequence[str]) -> str:
    # no process that serves needs it
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def explain(error: ValidationError, settings: Collection[str]) -> str:
    """Say in one line what is wrong, by the names of settings, without values.

    Args:
        error: What the model says.
        settings: The names of all fields.
    """
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        text = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(text)
            continue
        name = f"{PREFIX}{str(problem['loc'][0]).upper()}"
        if problem["type"] == "extra_forbidden":
            known = {f"{PREFIX}{field.upper()}" for field in settings}
            lines.append(_unknown(name, known))
        else:
            lines.append(f"{name}: {text}")
    return "; ".join(lines)
