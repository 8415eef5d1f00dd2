"""Personal values under keys of their own: stored encrypted, and gone when the key is destroyed.

Private: ``docs/api.md`` lists the public modules.
"""
