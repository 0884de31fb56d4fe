"""From a repository of the hub to a complete snapshot in the cache."""
