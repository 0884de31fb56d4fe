"""Downloads from the hub: from a repository to a complete snapshot in the cache."""
