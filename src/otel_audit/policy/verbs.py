"""Verbs in paths and in event names, each with its class of action."""

from __future__ import annotations

from typing import Final

from otel_audit.policy.words import participle

_CREATE: Final = (
    "add clone copy create duplicate fork generate import insert invite make new open place post "
    "provision register"
)
_READ: Final = (
    "browse check compare count describe diff download export fetch find get inspect list lookup "
    "peek poll preview print query read render search show stat status_ suggest view filter"
)
_UPDATE: Final = (
    "adjust amend append archive assign attach change convert correct decrement edit extend fill "
    "increment link mark merge modify move patch pin put regenerate rename renew reorder replace "
    "reset restore rotate save set transition "
    "split star swap tag toggle transfer unarchive unassign unlink unpin unstar untag update "
    "upgrade downgrade upload upsert write"
)
_DELETE: Final = "clear delete destroy detach discard drop erase forget purge remove trash wipe"
_EXECUTE: Final = (
    "abort accept acknowledge activate allow apply approve arm audit authorize ban begin bind "
    "block book bookmark broadcast buy calculate call cancel capture charge checkin checkout "
    "claim clean close collect commit complete compute confirm connect consume deactivate "
    "decline decrypt deliver deny deploy disable disarm disconnect dismiss dispatch dispute do "
    "draft_ enable encrypt end enqueue enroll escalate estimate evaluate execute expire "
    "favorite favourite finalize finish flag flush flushall follow freeze fulfill grant halt "
    "hide hold ignore impersonate index_ initialize install invalidate invoke issue_ join kick "
    "kill launch leave lend like lock match mute notify override pair pause pay ping play process "
    "promote publish quit reactivate rebase reblog rebuild recalculate receive reconcile redeem "
    "redo refresh refund register_ reindex reject release reload reopen repair repay replay "
    "reply report_ request_ rerun reschedule resend reserve resolve resubmit resume retire "
    "retry return revert review_ revoke rollback run sample_ scan schedule sell send settle "
    "setup share ship shutdown sign simulate skip sleep start stop submit subscribe suspend "
    "sync synchronize take terminate test train translate trigger unapprove unban unblock "
    "unbookmark undo unfavorite unfavourite unfollow unfreeze unhide uninstall unlike unlock "
    "unmute unpair unpublish unreblog unsubscribe unsuspend use validate verify void vote wake "
    "withdraw"
)

ACTIONS: Final[dict[str, str]] = {
    verb: action
    for action, verbs in (
        ("CREATE", _CREATE),
        ("READ", _READ),
        ("UPDATE", _UPDATE),
        ("DELETE", _DELETE),
        ("EXECUTE", _EXECUTE),
        ("LOGIN", "login"),
        ("LOGOUT", "logout"),
    )
    for verb in verbs.split()
    if not verb.endswith("_")
}
"""Verb to action. Words that are nouns when they are alone (``issue``, ``report``,
``request``, ``review``) are left out."""

_FACTORS: Final = ("mfa", "otp", "totp", "two_factor", "2fa")
_FACTOR_VERBS: Final = (
    ("verify", "verified", "LOGIN"),
    ("enroll", "enrolled", "UPDATE"),
    ("setup", "enrolled", "UPDATE"),
    ("enable", "enabled", "UPDATE"),
    ("disable", "disabled", "UPDATE"),
)

ACCOUNT: Final[dict[str, tuple[str, str]]] = {
    "login": ("user.logged_in", "LOGIN"),
    "log_in": ("user.logged_in", "LOGIN"),
    "signin": ("user.logged_in", "LOGIN"),
    "sign_in": ("user.logged_in", "LOGIN"),
    "authenticate": ("user.logged_in", "LOGIN"),
    "logout": ("user.logged_out", "LOGOUT"),
    "log_out": ("user.logged_out", "LOGOUT"),
    "signout": ("user.logged_out", "LOGOUT"),
    "sign_out": ("user.logged_out", "LOGOUT"),
    "register": ("user.registered", "CREATE"),
    "signup": ("user.registered", "CREATE"),
    "sign_up": ("user.registered", "CREATE"),
    "logout_all": ("user.logged_out", "LOGOUT"),
    "forgot_password": ("user.password_reset_requested", "EXECUTE"),
    "password_forgot": ("user.password_reset_requested", "EXECUTE"),
    "password_recovery": ("user.password_reset_requested", "EXECUTE"),
    "recover_password": ("user.password_reset_requested", "EXECUTE"),
    "password_reset": ("user.password_reset", "UPDATE"),
    "reset_password": ("user.password_reset", "UPDATE"),
    "change_password": ("user.password_changed", "UPDATE"),
    "password_change": ("user.password_changed", "UPDATE"),
    "request_verify_token": ("user.verification_requested", "EXECUTE"),
    "verify_email": ("user.email_verified", "UPDATE"),
    "api_token_auth": ("user.logged_in", "LOGIN"),
    "obtain_token": ("user.logged_in", "LOGIN"),
    "magic_link_verify": ("user.logged_in", "LOGIN"),
    "verify_magic_link": ("user.logged_in", "LOGIN"),
    "impersonate": ("user.impersonated", "EXECUTE"),
    **{
        joined: (f"user.{factor.replace('2', 'two_')}_{done}", action)
        for factor in _FACTORS
        for verb, done, action in _FACTOR_VERBS
        for joined in (f"{factor}_{verb}", f"{verb}_{factor}")
    },
}
"""Segments, or pairs of segments, that are the whole name if no other resource precedes them."""

UNDER_AUTH: Final[dict[str, tuple[str, str]]] = {
    "auth": ("user.logged_in", "LOGIN"),
    "session": ("user.logged_in", "LOGIN"),
    "acs": ("user.logged_in", "LOGIN"),
    "token": ("user.logged_in", "LOGIN"),
    "tokens": ("user.logged_in", "LOGIN"),
    "access_token": ("user.logged_in", "LOGIN"),
    "jwt": ("user.logged_in", "LOGIN"),
    "callback": ("user.logged_in", "LOGIN"),
    "refresh": ("token.refreshed", "EXECUTE"),
    "refresh_token": ("token.refreshed", "EXECUTE"),
    "revoke": ("token.revoked", "EXECUTE"),
    "introspect": ("token.introspected", "READ"),
    "verify": ("user.verified", "EXECUTE"),
}
"""The same, if authentication precedes them."""

LOGIN: Final = frozenset({"authenticate", "log_in", "login", "sign_in", "signin"})
"""Segments that say that somebody logs in."""

WAYS_IN: Final = frozenset({
    "2fa", "apple", "azure", "basic", "cookie", "email", "facebook", "form", "github", "gitlab",
    "google", "guest", "json", "jwt", "ldap", "linkedin", "local", "magic_link", "mfa",
    "microsoft", "mobile", "oauth", "oauth2", "oidc", "okta", "otp", "passkey", "password", "phone",
    "pin", "saml", "sms", "social", "sso", "submit", "twitter", "username", "web",
    "webauthn",
})  # fmt: skip
"""Segments that may follow one of `LOGIN`, and only say how."""

PROVIDERS: Final = frozenset({
    "apple", "azure", "facebook", "github", "gitlab", "google", "ldap", "linkedin", "local",
    "microsoft", "okta", "saml", "twitter",
})  # fmt: skip
"""Those of `WAYS_IN` that may also follow ``auth``."""

TENANTS: Final = frozenset({
    "companies", "company", "org", "organisation", "organisations", "organization",
    "organizations", "orgs", "realm", "realms", "sessions", "team", "teams", "tenant", "tenants",
    "workspace", "workspaces",
})  # fmt: skip
"""Segments that people log in to."""

ONLY_AUTH: Final = frozenset({
    "auth", "auths", "oauth", "oauth2", "authentication", "session", "sso", "oidc", "saml",
    "openid", "openid_connect", "protocol", "login", "token", "jwt",
})  # fmt: skip
"""Segments about authentication, also below a tenant or a realm."""

AUTH: Final = ONLY_AUTH | {
    "account", "accounts", "identity", "connect", "user", "users", "me",
}  # fmt: skip
"""Segments that may precede those of `ACCOUNT` and `UNDER_AUTH`."""

LEADING: Final = frozenset({
    "activate", "add", "archive", "clean", "clear", "convert", "create", "deactivate", "delete",
    "disable", "edit", "enable", "generate", "import", "purge", "rebuild", "refresh", "reindex",
    "reject", "remove", "reset", "restore", "send", "trigger", "update", "upload", "validate",
    "verify",
})  # fmt: skip
"""Verbs that may precede their object in one segment: ``clean/images``. Others, such as
``audit`` or ``test``, are as often nouns there: ``audit/logs``."""

TRAILING: Final = frozenset({
    "add", "create", "delete", "export", "import", "remove", "reset", "sync", "update",
})  # fmt: skip
"""Verbs that may follow their object in one segment: ``member_add``."""

COMPOUND: Final = frozenset({
    "audit", "block", "book", "call", "charge", "check", "commit", "display", "download", "draft",
    "export", "flag", "follow", "import", "index", "join", "link", "list", "log", "match",
    "merge", "order", "pin", "process", "pull", "release", "report", "request", "review", "run",
    "sample", "schedule", "search", "share", "sign", "star", "tag", "test", "transfer", "trigger",
    "upload", "view", "vote",
})  # fmt: skip
"""Verbs that begin compound nouns, before a word of `THINGS`: ``merge_requests``."""

THINGS: Final = frozenset({
    "cases", "codes", "entries", "events", "groups", "histories", "jobs", "keys", "links",
    "lists", "logs", "notes", "plans", "points", "records", "requests", "results", "rules",
    "runs", "sessions", "settings", "tasks", "templates", "tokens", "types",
})  # fmt: skip

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "create_or_update": ("upsert",),
    "update_or_create": ("upsert",),
    "add_or_update": ("upsert",),
    "impersonation": ("impersonate",),
    "activation": ("activate",),
    "deactivation": ("deactivate",),
    "cancellation": ("cancel",),
    "approval": ("approve",),
    "rejection": ("reject",),
}
"""Segments that say the same as a verb."""

_BY_PARTICIPLE: Final[dict[str, str]] = {
    **{participle(verb): action for verb, action in ACTIONS.items()},
    **{name.rpartition(".")[2]: action for name, action in UNDER_AUTH.values()},
    **{name.rpartition(".")[2]: action for name, action in ACCOUNT.values()},
    "accessed": "READ",
}


def action_of_event(name: str) -> str:
    """Return the kind of action, by the last word of an event name.

    Args:
        name: Such as ``tenant.provisioned`` or ``user.logged_in``.

    Returns:
        ``CREATE READ UPDATE DELETE LOGIN LOGOUT``; ``EXECUTE`` where the word says nothing.
    """
    word = name.rpartition(".")[2]
    found = _BY_PARTICIPLE.get(word) or ACTIONS.get(word)
    return found or _BY_PARTICIPLE.get(word.rpartition("_")[2], "EXECUTE")
