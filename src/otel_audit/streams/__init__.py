"""Streams: send sealed records to a SIEM, a file or a webhook, in order and without gaps.

Private: ``docs/api.md`` lists the public modules.
"""
