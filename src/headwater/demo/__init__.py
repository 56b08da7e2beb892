"""The demo: a tiny model with a planted cause, traced, the culprits removed, retrained."""
