"""Streams: what is sealed goes on to a SIEM, a file or a webhook, in order and without a gap."""
