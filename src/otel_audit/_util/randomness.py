"""One generator of random numbers for this package; nothing that it gives is a secret."""

from __future__ import annotations

import random

from otel_audit._util.fork import call_in_child

# not the shared one of `random`: an application may have seeded it, and would get other numbers
# with us than without us
generator = random.Random()  # noqa: S311
call_in_child(generator.seed)
