"""The pytest plugin of otel-audit. Loaded in every test run, so it imports pytest and no more."""
