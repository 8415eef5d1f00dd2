"""The ledger: a Merkle tree over the stored rows, signed, anchored, and provable offline.

Private: ``docs/api.md`` lists the public modules.
"""
