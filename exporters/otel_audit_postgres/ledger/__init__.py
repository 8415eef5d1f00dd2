"""The ledger: a Merkle tree over the stored rows, signed, anchored, and provable offline."""
