"""Bill cycles and bills."""
