"""Actions: their life cycle, and the one builder of records.

Private: ``docs/api.md`` lists the public modules.
"""
