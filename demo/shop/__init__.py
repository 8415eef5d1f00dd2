"""A small multi-tenant shop: an ordinary application that knows nothing of what observes it."""
