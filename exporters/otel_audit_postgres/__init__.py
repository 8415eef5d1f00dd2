"""The audit store in PostgreSQL."""
