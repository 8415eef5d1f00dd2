"""Months that left the database: Parquet files, signed manifests, and queries over them."""
