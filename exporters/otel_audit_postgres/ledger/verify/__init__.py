"""Verification: rows, tree, signatures and anchors.

Private: ``docs/api.md`` lists the public modules.
"""
