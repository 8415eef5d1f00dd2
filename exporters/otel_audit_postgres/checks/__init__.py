"""Checks of a store and its rights, for ``otel-audit doctor``.

Private: ``docs/api.md`` lists the public modules.
"""
