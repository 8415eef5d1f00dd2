"""Helpers that all parts share, each in one place.

Private: ``docs/api.md`` lists the public modules.
"""
