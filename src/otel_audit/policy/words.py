"""English morphology for names in URLs: singular, plural, participle."""

from __future__ import annotations

from typing import Final

from otel_audit.record import snake_case

_IRREGULAR: Final = {
    "aliases": "alias", "analyses": "analysis", "axes": "axis", "biases": "bias",
    "bonuses": "bonus", "buses": "bus", "caches": "cache", "calves": "calf",
    "campuses": "campus", "canvases": "canvas", "censuses": "census", "children": "child",
    "cookies": "cookie", "corpora": "corpus", "crises": "crisis", "criteria": "criterion",
    "diagnoses": "diagnosis", "feet": "foot", "gases": "gas", "geese": "goose",
    "halves": "half", "hypotheses": "hypothesis", "indices": "index", "knives": "knife",
    "leaves": "leaf", "lenses": "lens", "lives": "life", "loaves": "loaf",
    "matrices": "matrix", "men": "man", "mice": "mouse", "movies": "movie", "niches": "niche",
    "oxen": "ox", "parentheses": "parenthesis", "people": "person", "phenomena": "phenomenon",
    "quizzes": "quiz", "selfies": "selfie", "shelves": "shelf", "shoes": "shoe",
    "statuses": "status", "synopses": "synopsis", "syntheses": "synthesis", "teeth": "tooth",
    "theses": "thesis", "thieves": "thief", "ties": "tie", "toes": "toe",
    "vertices": "vertex", "viruses": "virus", "wives": "wife", "wolves": "wolf",
    "women": "woman", "zombies": "zombie", "calories": "calorie", "pies": "pie",
    "lies": "lie", "dies": "die", "canoes": "canoe", "avalanches": "avalanche",
    "headaches": "headache", "prognoses": "prognosis", "appendices": "appendix",
    "radii": "radius", "stimuli": "stimulus", "alumni": "alumnus", "nuclei": "nucleus",
    "syllabi": "syllabus", "fungi": "fungus", "cacti": "cactus", "strata": "stratum",
    "curricula": "curriculum", "memoranda": "memorandum", "errata": "erratum",
}  # fmt: skip

_UNCOUNTED: Final = frozenset({
    "access", "aircraft", "analytics", "billing", "business", "chassis", "credentials", "data",
    "details", "diagnostics", "equipment", "feedback", "furniture", "goods", "graphics",
    "headquarters", "information", "logistics", "means", "media", "metadata", "metrics", "news",
    "physics", "preferences", "sales", "savings", "series", "settings", "species", "sports",
    "statistics", "stats", "status", "terms", "address", "process", "progress", "bus", "gas",
    "bias", "alias", "atlas", "canvas", "lens", "plus", "virus", "campus", "census", "bonus",
    "corpus", "focus", "radius", "nucleus", "menus_", "dns", "https", "sms", "gps", "aws", "saas",
    "kudos", "chaos", "pos", "gdpr", "always", "redis", "kubernetes",
})  # fmt: skip

# in addition to the endings ch, sh, ss, x, z: plurals in -es of words that end so are found by rule
_ENDINGS: Final = (
    ("sses", "ss"), ("shes", "sh"), ("tches", "tch"), ("ches", "ch"), ("xes", "x"),
    ("zzes", "zz"),
)  # fmt: skip

_PARTICIPLES: Final = {
    "accept": "accepted", "begin": "begun", "bind": "bound", "bid": "bid", "break": "broken",
    "bring": "brought", "build": "built", "buy": "bought", "catch": "caught", "choose": "chosen",
    "cut": "cut", "do": "done", "draw": "drawn", "drive": "driven", "feed": "fed",
    "fight": "fought", "find": "found", "forget": "forgotten", "freeze": "frozen", "get": "got",
    "give": "given", "grow": "grown", "hide": "hidden", "hit": "hit", "hold": "held",
    "keep": "kept", "know": "known", "lay": "laid", "lead": "led", "leave": "left",
    "lend": "lent", "let": "let", "lose": "lost", "make": "made", "meet": "met", "pay": "paid",
    "prepay": "prepaid", "put": "put", "quit": "quit", "read": "read", "rebuild": "rebuilt",
    "redo": "redone", "repay": "repaid", "resend": "resent", "reset": "reset", "rewrite":
    "rewritten", "rerun": "rerun", "ring": "rung", "run": "run", "see": "seen", "seek": "sought",
    "sell": "sold", "send": "sent", "set": "set", "shut": "shut", "spend": "spent",
    "split": "split", "steal": "stolen", "take": "taken", "teach": "taught", "tell": "told",
    "undo": "undone", "unfreeze": "unfrozen", "unbind": "unbound", "upset": "upset",
    "sync": "synced", "resync": "resynced",
    "withdraw": "withdrawn", "withhold": "withheld", "write": "written", "overwrite":
    "overwritten", "login": "logged_in", "logout": "logged_out", "signin": "signed_in",
    "signout": "signed_out", "signup": "signed_up", "checkout": "checked_out", "checkin":
    "checked_in", "backup": "backed_up", "new": "created", "flushall": "flushed_all",
    "rollback": "rolled_back", "setup": "set_up",
    "shutdown": "shut_down", "override": "overridden", "forgo": "forgone",
}  # fmt: skip

_DOUBLED: Final = frozenset({
    "abet", "admit", "allot", "ban", "bar", "cancel", "chat", "clip", "commit", "compel",
    "control", "crop", "debug", "drag", "drop", "equip", "flag", "format_", "grab", "jam", "label",
    "log", "map", "model", "omit", "opt", "pan", "permit", "pin", "plan", "plug", "pop", "prefer",
    "program", "ram", "reblog", "refer", "rip", "scan", "ship", "sip", "skip", "slip", "snap",
    "spam", "unreblog",
    "star", "step", "stop", "strip", "submit", "swap", "tag", "tap", "tip", "transfer", "transmit",
    "travel", "trim", "unban", "unflag", "unmap", "unpin", "unplug", "unship", "unstar", "untag",
    "unwrap", "wrap", "zip", "unzip", "unsub", "sub", "defer", "incur", "occur", "infer", "confer",
})  # fmt: skip


def split_words(text: str) -> list[str]:
    """Split a name in any style into lower-case words: ``orderLines``, ``order-lines``.

    Returns:
        The words; what is neither an ASCII letter nor a digit separates.
    """
    return [word for word in snake_case(text).split("_") if word]


def singular(word: str) -> str:  # noqa: PLR0911 - one for each ending
    """Return the singular of a lower-case noun, itself where it is one."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _UNCOUNTED or len(word) < 3 or not word.endswith("s"):  # noqa: PLR2004 - "os", "is"
        return word
    if word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]  # noqa: PLR2004 - "ties"
    for plural, ending in _ENDINGS:
        if word.endswith(plural):
            return word.removesuffix(plural) + ending
    if word.endswith("oes"):
        return word[:-2]
    return word[:-1]


def is_plural(word: str) -> bool:
    """Return whether a lower-case noun is a plural."""
    return singular(word) != word


def participle(verb: str) -> str:  # noqa: PLR0911 - one for each ending
    """Return the past participle of a lower-case verb, itself where it is one."""
    if verb in _PARTICIPLES:
        return _PARTICIPLES[verb]
    if verb in _DOUBLED:
        return f"{verb}{verb[-1]}ed"
    if verb.endswith("eed"):
        return f"{verb}ed"
    if verb.endswith("ed"):
        return verb
    if verb.endswith("e"):
        return f"{verb}d"
    if verb.endswith("y") and verb[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        return f"{verb[:-1]}ied"
    if verb.endswith("c"):
        return f"{verb}ked"
    return f"{verb}ed"
