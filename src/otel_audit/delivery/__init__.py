"""Delivery: queue, spool, and the writer that brings records to a sink.

Private: ``docs/api.md`` lists the public modules.
"""
