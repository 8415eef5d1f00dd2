"""One generator of random numbers for this package; nothing that it gives is a secret."""

from __future__ import annotations

import os
import random

# not the shared one of `random`: an application may have seeded it, and would get other numbers
# with us than without us
generator = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=generator.seed)
