"""Records as files that can be taken away, with a proof that holds without the store."""
