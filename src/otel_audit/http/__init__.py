"""Capture of HTTP requests and WebSockets.

Private: ``docs/api.md`` lists the public modules.
"""
