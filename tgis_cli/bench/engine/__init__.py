"""The engine alone: a server's shards, whose leader gets its plans from a benchmark instead of a scheduler."""
