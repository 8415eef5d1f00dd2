"""Months that left the database: Parquet files, signed manifests, and what is asked of them."""
