"""The name and the kind of an action, from its method and route."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

from otel_audit.policy.verbs import (
    ACCOUNT,
    ACTIONS,
    AUTH,
    COMPOUND,
    LEADING,
    LOGIN,
    ONLY_AUTH,
    PROVIDERS,
    SYNONYMS,
    TENANTS,
    THINGS,
    TRAILING,
    UNDER_AUTH,
    WAYS_IN,
)
from otel_audit.policy.words import is_plural, participle, singular, split_words

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME: Final = re.compile(r"[a-z0-9_]+\.[a-z_]+")
"""Pattern of derived event names."""

_METHODS: Final[Mapping[str, tuple[str, str]]] = {
    "POST": ("created", "CREATE"),
    "PUT": ("updated", "UPDATE"),
    "PATCH": ("updated", "UPDATE"),
    "DELETE": ("deleted", "DELETE"),
    "GET": ("accessed", "READ"),
    "HEAD": ("accessed", "READ"),
    # says what may be done, and reads nothing
    "OPTIONS": ("options_requested", "EXECUTE"),
    "QUERY": ("accessed", "READ"),
    "WEBSOCKET": ("connected", "EXECUTE"),
}
_GETTING: Final = frozenset({"fetch", "get", "list"})
_OTHER_METHOD: Final = ("requested", "EXECUTE")
_DOING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_MANY: Final = frozenset({"batch", "bulk", "mass", "multi"})
_MANY_SEGMENTS: Final = {
    "batch": "batch_", "batch_actions": "batch_", "batch_operations": "batch_",
    "bulk": "bulk_", "bulk_actions": "bulk_", "bulk_operations": "bulk_",
}  # fmt: skip
"""Segments that say only that the verb behind them is done to many."""

_MANY_ALONE: Final = {"batch": "batch_", "bulk": "bulk_"}
"""Segments that say only that what the method does is done to many: ``DELETE /users/bulk``."""

_NOUNS_ALONE: Final = frozenset({"filter", "poll"})
_VERBS_ALONE: Final = frozenset({
    "calculate", "evaluate", "execute", "rebuild", "recalculate", "refresh", "reindex", "reload",
    "shutdown", "simulate", "sync", "synchronize", "validate",
})  # fmt: skip
"""Verbs that may be the whole path: ``POST /sync`` creates nothing."""

_EXTENSIONS: Final = frozenset({
    "atom", "csv", "docx", "gif", "gz", "htm", "html", "ics", "jpeg", "jpg", "json", "jsonl", "md",
    "ndjson", "parquet", "pdf", "png", "rss", "svg", "tar", "tsv", "txt", "webp", "xls", "xlsx",
    "xml", "yaml", "yml", "zip",
})  # fmt: skip

# what a link in a mail or a redirect does, and so a GET
_BY_LINK: Final = frozenset({
    "accept", "activate", "callback", "confirm", "decline", "logout", "log_out", "sign_out",
    "refresh", "signout", "unsubscribe", "validate", "verify", "verify_email",
})  # fmt: skip
_WITH_TOKEN: Final = frozenset({
    "impersonate", "password_recovery", "password_reset", "recover_password", "reset_password",
    "verify_email",
})  # fmt: skip

_SEGMENTS: Final = 16
"""Segments of a path that are read: the last ones, where noun and verb are."""
_SEGMENT_LENGTH: Final = 64
"""Characters of a segment that are read: an event's name is short."""
_PREFIX: Final = re.compile(
    r"(api|rest|rpc|public|internal|private|external|utils?|v\d{1,3}([._-]?\w{1,8})?|\d{4}-\d{2}-\d{2}"
    r"|\d{1,2}\.\d{1,3})",
    re.IGNORECASE,
)
_PREFIX_PARAMETER: Final = re.compile(r"(api_?)?version", re.IGNORECASE)
_PARAMETER: Final = re.compile(r"\{([^{}:]*)(?::[^{}]*)?\}")
_LOOKS_LIKE_ID: Final = re.compile(
    r"\d[\d.,_-]*|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|[0-9a-fA-F]{16,}|[0-9A-HJKMNP-TV-Za-z]{26}"
    r"|(?=[^/]*\d)[A-Za-z0-9_-]{20,}|[a-z]{2,6}_(?=[^/]*\d)[A-Za-z0-9]{8,}|[^/]*[@%\s][^/]*"
)
_SELF: Final = frozenset({"me", "self", "myself", "current"})
_PEOPLE: Final = frozenset({
    "account", "actor", "admin", "customer", "employee", "member", "participant", "person",
    "profile", "user",
})  # fmt: skip
"""Of these ``me`` and ``current`` are who acts; a ``current`` team is not."""

_NAMES_SOMEBODY: Final = frozenset({
    "account", "email", "login", "mail", "phone", "user", "username",
})  # fmt: skip
"""Words of path parameters that say whose account it is."""

Whom = Literal["actor", "either", "named"]
_LOGIN_BY_POST: Final = frozenset({"auth", "session"})
_OF_ONESELF: Final = ("_enabled", "_disabled", "_enrolled")
_BY_ACTION: Final[Mapping[str, Whom]] = {"LOGIN": "named", "LOGOUT": "actor"}
_LAST_STEPS: Final = frozenset({"complete", "confirm", "done", "finish"})
_HANDING_OUT: Final = frozenset({"download", "export"})
_STATES: Final = frozenset({
    "active", "inactive", "done", "complete", "read", "unread", "default", "favorite", "spam",
    "ready", "paid", "open", "live", "public", "private", "final", "out", "in", "all", "up", "down",
})  # fmt: skip
_PREPOSITIONS: Final = frozenset({"as", "by", "for", "from", "into", "to", "with"})
_DIGITS: Final = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four",
    "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of an action.

    Attributes:
        event_name: Resource, a dot, past participle: ``order.created``.
        action: ``CREATE READ UPDATE DELETE EXECUTE LOGIN LOGOUT``.
        target_type: The resource, ``order``; None if the path has none.
        target_parameter: Path parameter that is its id, None if there is none.
        target_id: Its id, where the path itself was named, as it had no route.
        whom: Where the path does not say whose account it is: who acts (``actor``), who is named in
            the request or its answer, as nobody is logged in yet (``named``), or the latter and
            else the former (``either``).
    """

    event_name: str
    action: str
    target_type: str | None = None
    target_parameter: str | None = None
    target_id: str | None = None
    whom: Whom | None = None


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment: fixed words, at least one, or a parameter (in a plain path an id)."""

    words: tuple[str, ...]
    parameter: str | None = None
    value: str | None = None

    @property
    def is_id(self) -> bool:
        return self.parameter is not None or self.value is not None

    @property
    def snake(self) -> str:
        return "_".join(self.words)


def name_action(method: str, path: str, *, is_template: bool = True) -> Naming:
    """Name an action.

    Args:
        method: HTTP method in upper case; ``WEBSOCKET`` for a socket.
        path: Route template such as ``/api/v1/orders/{order_id}``, or a path as requested.
        is_template: Whether it is a template; in a plain path what looks like an id is taken for
            one, so that names stay few.

    Returns:
        The naming; its event name always matches `NAME`.
    """
    segments = _segments(path, is_template=is_template)
    if method == "OPTIONS":
        return _by_method(method, segments)
    found = _account(method, segments) or _resource(method, segments)
    if found.target_parameter == "":
        return replace(found, whom="actor") if found.target_type in _PEOPLE else found
    if found.target_parameter is None and found.target_id is None and found.whom is None:
        return replace(found, whom=_BY_ACTION.get(found.action))
    return found


def _account(method: str, segments: list[_Segment]) -> Naming | None:
    """Name what people do with their account: logging in and out, passwords, tokens."""
    fixed = [segment.snake for segment in segments if not segment.is_id]
    if not fixed:
        return None
    word, before = fixed[-1], fixed[:-1]
    if method == "POST" and not segments[-1].is_id and _is_last_step(word, before):
        return _account(method, segments[:-1])
    if before and method == "POST" and _says_how(before[-1], word):
        word, before = "login", before[:-1]
    if before and f"{before[-1]}_{word}" in ACCOUNT and not segments[-2].is_id:
        word, before = f"{before[-1]}_{word}", before[:-1]
    if method == "DELETE" and word == "session" and not segments[-1].is_id:
        found: tuple[str, str] | None = ACCOUNT["logout"]
    elif word in _LOGIN_BY_POST and method != "POST":
        found = None
    else:
        alone = word in {"token", "access_token"} or word in _LOGIN_BY_POST
        found = ACCOUNT.get(word) or (UNDER_AUTH.get(word) if before or alone else None)
    if found is None or not _is_of_account(method, word, before, segments):
        return None
    kind = found[0].partition(".")[0]
    people = [
        one.parameter
        for before_it, one in pairwise((_Segment(("root",)), *segments))
        if one.parameter and (_is_person(before_it) or _names_somebody(one.parameter))
    ]
    return Naming(*found, kind, people[-1] if people else None, whom=_whom(found[0], kind))


def _is_of_account(method: str, word: str, before: list[str], segments: list[_Segment]) -> bool:
    """Return whether the neighbours of a word allow it to mean somebody's account."""
    # a provider's name may precede its callback, a one-time token may follow a reset
    callback = word == "callback" and before[:1] != [] and before[0] in AUTH
    # people log in to a tenant, by some way
    around = AUTH | WAYS_IN | TENANTS if ACCOUNT.get(word, ("", ""))[1] in _BY_ACTION else AUTH
    if word in ACCOUNT:
        around |= WAYS_IN
    if not (callback or all(one in around for one in before)) and not _is_below(segments):
        return False
    # a way to log in may be a parameter, as {provider}
    way = method == "POST" and word in LOGIN and segments[-1].is_id
    mine = word in ACCOUNT and all(one.parameter == "" for one in segments if one.is_id)
    free = callback or way or mine or word in _WITH_TOKEN or _is_below(segments)
    if not free and any(one.is_id for one in segments):
        is_person = any(_is_person(one) for one in segments)
        if is_person or ACCOUNT.get(word, ("", ""))[1] not in _BY_ACTION:
            return False
    # showing the form is not doing it
    return method in _DOING or word in _BY_LINK


def _is_last_step(word: str, before: list[str]) -> bool:
    """Return whether a segment only says that something is completed: ``login/finish``."""
    if not before:
        return False
    if before[-1] in LOGIN:
        return word in {"complete", "finish"}
    resets = {"password_reset", "reset_password"}
    return word in _LAST_STEPS and not resets.isdisjoint((before[-1], "_".join(before[-2:])))


def _says_how(before: str, word: str) -> bool:
    """Return whether a segment only says how somebody logs in: ``login/google``, ``auth/ldap``."""
    return (before in LOGIN and word in WAYS_IN) or (before == "auth" and word in PROVIDERS)


def _is_person(segment: _Segment) -> bool:
    return bool(segment.words) and singular(segment.words[-1]) in _PEOPLE


def _names_somebody(parameter: str) -> bool:
    return not _NAMES_SOMEBODY.isdisjoint(split_words(parameter))


def _whom(event: str, kind: str) -> Whom | None:
    if kind != "user":
        return None
    done = event.partition(".")[2]
    if done.endswith("_verified"):
        return "either"
    of_oneself = done in {"logged_out", "password_changed"}
    return "actor" if of_oneself or done.endswith(_OF_ONESELF) else "named"


def _is_below(segments: list[_Segment]) -> bool:
    """Return whether only words of authentication, at least one, follow the last id."""
    last_id = max((i for i, one in enumerate(segments) if one.is_id), default=-1)
    behind = [segment.snake for segment in segments[last_id + 1 :]]
    return last_id >= 0 and len(behind) > 1 and all(word in ONLY_AUTH for word in behind[:-1])


def _resource(method: str, segments: list[_Segment]) -> Naming:
    rest = list(segments)
    if len(rest) > 1 and not rest[-2].is_id and rest[-1].snake in _MANY_ALONE:
        many = _MANY_ALONE[rest.pop().snake]
        found = _by_method(method, rest)
        return replace(found, event_name=found.event_name.replace(".", f".{many}", 1))
    if len(rest) > 1 and rest[-1].snake in _EXTENSIONS and rest[-2].snake in _HANDING_OUT:
        rest.pop()  # reports/{id}/export/pdf
    verb = _verb(method, rest)
    if verb is None:
        named = (
            _leading_verb(method, rest)
            or _call_with_id(method, rest)
            or _verb_before_id(method, rest)
        )
        return named or _by_method(method, rest)
    if len(rest) == 1:
        return _call(verb, rest[0].words)
    rest.pop()
    if len(rest) > 1 and rest[-1].snake in _MANY_SEGMENTS:
        verb = _Verb((_MANY_SEGMENTS[rest.pop().snake], *verb.words), verb.action)
    last, resource, target = _subject(rest)
    done = verb.done(resource)
    if done == "deleted" and last is not None and _is_reference(rest, last):
        done = "removed"
    return _spell(resource, done, verb.action, target)


def _subject(
    segments: list[_Segment],
) -> tuple[int | None, str, tuple[str | None, str | None]]:
    """Find the place of the last fixed segment, the resource that it names, and its id."""
    last = _last_fixed(segments, len(segments))
    if last is None:
        target = _target_of(segments)
        return None, "user" if target[0] == "" else "root", target
    return last, _noun(segments[last].words), _target_of(segments[last + 1 :])


def _by_method(method: str, segments: list[_Segment]) -> Naming:
    """Name what has no verb but its method."""
    last, resource, target = _subject(segments)
    done, action = _METHODS.get(method, _OTHER_METHOD)
    owner = _owner_of_property(segments, last)
    if last is not None and owner is not None:
        if action == "CREATE":
            done, action = "set", "UPDATE"
        of = _target_of(segments[owner + 1 : last])
        return _spell(_noun(segments[owner].words), f"{segments[last].snake}_{done}", action, of)
    if resource == "password" and method in _DOING and target == (None, None):
        return replace(_spell("user", "password_updated", "UPDATE", target), whom="actor")
    if resource == "graphql":
        done, action = "executed", "EXECUTE"
    elif method == "POST" and target != (None, None):
        done, action = "updated", "UPDATE"
    return _spell(resource, done, action, target)


@dataclass(frozen=True, slots=True)
class _Verb:
    """A verb with its object, if it has one; a first word that ends in ``_`` precedes it."""

    words: tuple[str, ...]
    action: str

    def done(self, resource: str) -> str:
        """Say in the past tense what was done to a resource."""
        many, words = "", self.words
        if words[0].endswith("_"):
            many, words = words[0], words[1:]
        if len(words) > 1 and _noun(words[1:]) == resource:
            words = words[:1]  # deployments/{id}/pause_deployment
        return many + _phrase(words)


def _verb(method: str, segments: list[_Segment]) -> _Verb | None:
    """Read the last segment as a verb, if it is one and this method does it."""
    if not segments or segments[-1].is_id:
        return None
    many: tuple[str, ...] = ()
    words = segments[-1].words
    words = SYNONYMS.get("_".join(words), words) if len(segments) > 1 else words
    if len(words) > 1 and words[0] in _MANY:
        words, many = words[1:], (f"{words[0]}_",)
    alone = len(segments) == 1
    if not alone and len(words) > 1 and words[0] not in ACTIONS and words[-1] in TRAILING:
        words = (words[-1], *words[:-1])
    action = _action(method, words)
    if action is None or (alone and len(words) == 1 and _is_noun_alone(words[0], action)):
        return None
    return _Verb((*many, *words), action)


def _action(method: str, words: tuple[str, ...]) -> str | None:
    """Return the kind of action of words that begin with a verb, for a method; None: no verb."""
    action = ACTIONS.get(words[0])
    if action is None or (words[0] in COMPOUND and words[-1] in THINGS and len(words) > 1):
        return None
    if method not in _DOING and action != "READ" and words[0] not in _BY_LINK:
        return None  # GET /orders/new shows a form, GET /files/1/share a share
    if method == "DELETE" and action != "DELETE":
        return None  # DELETE /files/1/lock takes the lock away
    return action


def _is_noun_alone(word: str, action: str) -> bool:
    return (action != "READ" or word in _NOUNS_ALONE) and word not in _VERBS_ALONE


def _is_reference(segments: list[_Segment], last: int) -> bool:
    """Return whether a thing named in the singular between two ids only refers to it."""
    below = last > 0 and segments[last - 1].is_id and last + 1 < len(segments)
    return below and not is_plural(segments[last].words[-1])


def _leading_verb(method: str, segments: list[_Segment]) -> Naming | None:
    """Name a verb that stands in a segment before its object: ``clean/images``."""
    pair = segments[-2:]
    if len(pair) < 2 or any(one.is_id for one in pair):  # noqa: PLR2004 - a pair
        return None
    (verb, *more), noun, before = pair[0].words, pair[1], segments[:-2]
    action = _action(method, (verb,)) if verb in LEADING and not more else None
    if action is None or method not in _DOING:
        return None
    last, owner, target = _subject(before)
    done = participle(verb)
    if last is None or (noun.snake not in _STATES and verb not in {"create", "update"}):
        return _spell(_noun(noun.words), done, action, (None, None))
    if verb == "update":
        owner = "user" if before[last].snake in AUTH else owner
        return _spell(owner, f"{noun.snake}_{done}", action, target)
    # how a thing is created is a detail: recipes/create/url
    how = f"_{noun.snake}" if noun.snake in _STATES else ""
    return _spell(owner, f"{done}{how}", action, target)


def _call_with_id(method: str, segments: list[_Segment]) -> Naming | None:
    """Name a call with its object and an id: ``/get_user/{user_id}``."""
    last = _last_fixed(segments, len(segments))
    if last is None or last + 1 == len(segments) or len(segments[last].words) == 1:
        return None
    words = segments[last].words
    action = _action(method, words)
    if action is None or words[0] in COMPOUND:
        return None
    done = "accessed" if words[0] in _GETTING else participle(words[0])
    return _spell(_noun(words[1:]), done, action, _target_of(segments[last + 1 :]))


def _verb_before_id(method: str, segments: list[_Segment]) -> Naming | None:
    """Name a verb between its object and the object's id: ``/user/update/{user_id}``."""
    last = _last_fixed(segments, len(segments))
    if method not in _DOING or last is None or last + 2 != len(segments):
        return None
    words = segments[last].words
    action = _action(method, words) if words[0] in _BEFORE_ID and len(words) == 1 else None
    owner = _last_fixed(segments, last)
    if action is None or (last > 0 and segments[last - 1].is_id):
        return None
    done, target = participle(words[0]), _target_of(segments[last + 1 :])
    if owner is not None:
        return _spell(_noun(segments[owner].words), done, action, target)
    # the parameter says of what: `approve/{request_id}`
    *of, end = split_words(target[0] or "") or ("",)
    return _spell(_noun(tuple(of)), done, action, target) if of and end == "id" else None


_BEFORE_ID: Final = frozenset({
    "activate", "approve", "archive", "cancel", "close", "complete", "deactivate", "delete",
    "disable", "edit", "enable", "publish", "reject", "remove", "restore", "unpublish", "update",
})  # fmt: skip
"""Verbs that may be between a resource and its id; they do not occur there as nouns."""


def _owner_of_property(segments: list[_Segment], last: int | None) -> int | None:
    """Find the resource of which the last word is a part, not a collection below it."""
    if last is None or last + 1 < len(segments) or last == 0 or not segments[last - 1].is_id:
        return None
    return None if is_plural(segments[last].words[-1]) else _last_fixed(segments, last)


def _last_fixed(segments: list[_Segment], before: int) -> int | None:
    return next((i for i in reversed(range(before)) if not segments[i].is_id), None)


def _call(verb: _Verb, words: tuple[str, ...]) -> Naming:
    """Name a path that is a whole call, as ``/createOrder``, or a verb alone, as ``/search``."""
    if len(words) == 1:
        return _spell(words[0], "requested", verb.action, (None, None))
    done = "accessed" if words[0] in _GETTING else participle(words[0])
    return _spell(_noun(words[1:]), done, verb.action, (None, None))


def _phrase(words: tuple[str, ...]) -> str:
    done, rest = participle(words[0]), "_".join(words[1:])
    if words[0] in {"fetch", "get"}:
        done = "accessed"
    if not rest:
        return done
    is_state = words[-1] in _STATES or words[-1].endswith("ed") or words[0] == "mark"
    if is_state or words[1] in _PREPOSITIONS:
        return f"{done}_{rest}"
    return f"{rest}_{done}"


def _spell(resource: str, done: str, action: str, target: tuple[str | None, str | None]) -> Naming:
    for digit, word in _DIGITS.items():
        done = done.replace(digit, f"{word}_")
    done = re.sub("_+", "_", done).strip("_") or "requested"
    parameter, value = target
    target_type = None if resource == "root" else resource
    return Naming(f"{resource}.{done}", action, target_type, parameter, value)


def _target_of(following: list[_Segment]) -> tuple[str | None, str | None]:
    ids = [segment for segment in following if segment.is_id]
    return (ids[-1].parameter, ids[-1].value) if ids else (None, None)


def _noun(words: tuple[str, ...]) -> str:
    return "_".join((*words[:-1], singular(words[-1])))


def _segments(path: str, *, is_template: bool) -> list[_Segment]:
    found: list[_Segment] = []
    for text in path.split("/")[-_SEGMENTS:]:
        if text:
            found.extend(_read(text[:_SEGMENT_LENGTH], is_template=is_template))
    while found and _is_prefix(found[0]) and len(found) > 1:
        del found[0]
    return found


def _read(text: str, *, is_template: bool) -> list[_Segment]:
    # Google's custom methods: /orders/{order_id}:cancel
    subject, colon, custom = ("", "", "") if "}" in text else text.rpartition(":")
    if "}" in text:
        head, colon, custom = text.rpartition("}:")
        subject = f"{head}}}" if colon else ""
    called = tuple(split_words(custom)) if custom.isidentifier() else ()
    if colon and subject and called:
        return [*_read(subject, is_template=is_template), _Segment(called)]
    if is_template:
        parameter = _PARAMETER.search(text)
        if parameter is not None:
            return [_Segment((), parameter=parameter[1])]
    elif _LOOKS_LIKE_ID.fullmatch(text) and not _PREFIX.fullmatch(text):
        return [_Segment((), value=text)]
    # a file's extension is not a part of the name; of chat.postMessage the second word is the verb
    stem, _, behind = text.rpartition(".")
    if stem and behind.lower() in _EXTENSIONS:
        text = stem
    elif stem and behind.isidentifier() and (called := tuple(split_words(behind))):
        subject_words = tuple(split_words(stem))
        if subject_words and called[0] in ACTIONS:
            return [_Segment(subject_words), _Segment(called)]
    words = tuple(split_words(text))
    if "_".join(words) in _SELF:
        return [_Segment((), parameter="")]
    return [_Segment(words)] if words else []


def _is_prefix(segment: _Segment) -> bool:
    if segment.parameter is not None:
        return bool(_PREFIX_PARAMETER.fullmatch(segment.parameter))
    if segment.value is not None:
        return False
    return bool(
        _PREFIX.fullmatch("_".join(segment.words)) or _PREFIX.fullmatch("-".join(segment.words))
    )
