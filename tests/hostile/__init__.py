"""A hostile client at the HTTP boundary: generated requests, and what must hold after each.

``generated`` makes requests by a seeded generator and keeps, as a table, those that once did harm;
``applications`` has the shapes of applications that they are sent to, each of which writes down
what it was given and whom it let in; ``driving`` sends a request over ASGI, audited and unaudited;
``oracles`` has what must hold, one small function each. `test_hostile_requests` does it in process,
`test_hostile_servers` against real servers.

A failure names seed and number of the request. To run more, or the same again::

    HOSTILE_REQUESTS=200000 SEED=7 pytest tests/hostile -q

``HOSTILE_REQUESTS`` is the number for all shapes together; it takes about 1 ms a request. The bound
on what auditing may add is 20 ms of processor time; a test fails at three times that, as machines
are shared. ``HOSTILE_STALL_MS=20`` holds it to the bound.
"""
