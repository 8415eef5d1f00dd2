"""The shop's own suite: ``pytest -c demo/tests/pytest.ini demo/tests --audit-coverage``."""
