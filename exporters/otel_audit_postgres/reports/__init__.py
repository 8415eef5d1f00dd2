"""Reports for auditors: as of a checkpoint, the same bytes each time.

Private: ``docs/api.md`` lists the public modules.
"""
