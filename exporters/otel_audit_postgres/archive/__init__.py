"""Months that left the database: Parquet files, signed manifests, and queries over them.

Private: ``docs/api.md`` lists the public modules.
"""
