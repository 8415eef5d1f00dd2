from __future__ import annotations

import os
import random

from otel_audit._util.ids import public_id, uuid7
from otel_audit._util.randomness import generator


def test_the_shared_generator_is_the_applications():
    """An application that has seeded `random` gets the same numbers with us as without us."""
    before = random.getstate()
    uuid7(), public_id(), generator.random()
    assert random.getstate() == before


def test_a_forked_child_draws_other_numbers():
    """Processes of one server do not make the same ids."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, str(generator.getrandbits(128)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 100)) != generator.getrandbits(128)
