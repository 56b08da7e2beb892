"""The store on disk: shards, commits, resume, append, verify; and the same features in memory for queries."""
