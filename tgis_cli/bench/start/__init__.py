"""How long a server takes to start, with its model's files in the page cache and without."""
