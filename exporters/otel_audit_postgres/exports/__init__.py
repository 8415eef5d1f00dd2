"""Exports: records as files, with a proof that is checked without the store.

Private: ``docs/api.md`` lists the public modules.
"""
