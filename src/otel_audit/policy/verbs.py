"""Verbs that stand as a segment of a path, and what kind of action each one is."""

from __future__ import annotations

from typing import Final

_CREATE: Final = (
    "add clone copy create duplicate fork generate import insert invite make new open place post "
    "provision register"
)
_READ: Final = (
    "browse check compare count describe diff download export fetch find get inspect list lookup "
    "peek preview print query read render search show stat status_ suggest view"
)
_UPDATE: Final = (
    "adjust amend append archive assign attach change convert correct edit extend fill link mark "
    "merge modify move patch pin put rename renew reorder replace reset restore rotate save set "
    "split star swap tag toggle transfer unarchive unassign unlink unpin unstar untag update "
    "upgrade downgrade upload upsert write"
)
_DELETE: Final = "clear delete destroy detach discard drop erase forget purge remove trash wipe"
_EXECUTE: Final = (
    "abort accept acknowledge activate allow apply approve arm audit authorize ban begin bind "
    "block book broadcast buy calculate call cancel capture charge checkin checkout claim clean "
    "close collect commit complete compute confirm connect consume deactivate decline decrypt "
    "deliver deny deploy disable disarm disconnect dismiss dispatch dispute do draft_ "
    "enable encrypt end enqueue enroll escalate estimate evaluate execute expire finalize finish "
    "flag flush follow freeze fulfill grant halt hide hold ignore impersonate index_ initialize "
    "install invalidate invoke issue_ join kick kill launch leave lend like lock match mute "
    "notify override pause pay ping process promote publish quit reactivate rebuild recalculate "
    "receive reconcile redeem redo refresh refund register_ reindex reject release reload repay "
    "repair replay reply report_ request_ reschedule resend reserve resolve resubmit resume retire "
    "retry return revert review_ revoke rollback run sample_ scan schedule sell send settle setup "
    "share ship shutdown sign simulate skip sleep start stop submit subscribe suspend sync "
    "synchronize take terminate test train translate trigger unban unblock undo unfollow unfreeze "
    "unhide uninstall unlike unlock unmute unpublish unsubscribe unsuspend use validate verify "
    "void vote wake withdraw"
)

ACTIONS: Final[dict[str, str]] = {
    verb: action
    for action, verbs in (
        ("CREATE", _CREATE),
        ("READ", _READ),
        ("UPDATE", _UPDATE),
        ("DELETE", _DELETE),
        ("EXECUTE", _EXECUTE),
    )
    for verb in verbs.split()
    if not verb.endswith("_")
}
"""Verb to action. Words that are rather nouns where they stand alone (``issue``, ``report``,
``request``, ``review``) are left out."""

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
    "forgot_password": ("user.password_reset_requested", "EXECUTE"),
    "password_reset": ("user.password_reset", "UPDATE"),
    "reset_password": ("user.password_reset", "UPDATE"),
    "change_password": ("user.password_changed", "UPDATE"),
    "verify_email": ("user.email_verified", "UPDATE"),
    "impersonate": ("user.impersonated", "EXECUTE"),
}
"""Segments that say it all where no other resource stands before them."""

UNDER_AUTH: Final[dict[str, tuple[str, str]]] = {
    "token": ("user.logged_in", "LOGIN"),
    "tokens": ("user.logged_in", "LOGIN"),
    "jwt": ("user.logged_in", "LOGIN"),
    "callback": ("user.logged_in", "LOGIN"),
    "refresh": ("token.refreshed", "EXECUTE"),
    "refresh_token": ("token.refreshed", "EXECUTE"),
    "revoke": ("token.revoked", "EXECUTE"),
    "introspect": ("token.introspected", "READ"),
}
"""The same, where what stands before them is about authentication."""

AUTH: Final = frozenset({
    "auth", "oauth", "oauth2", "authentication", "account", "accounts", "session", "sso", "oidc",
    "saml", "identity", "connect", "user", "users", "login", "token", "jwt", "me",
})  # fmt: skip
"""What may stand before the segments of `ACCOUNT` and `UNDER_AUTH`."""
