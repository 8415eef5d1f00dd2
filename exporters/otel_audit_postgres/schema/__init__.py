"""The schema of the store: migrations, roles, partitions.

Private: ``docs/api.md`` lists the public modules.
"""
