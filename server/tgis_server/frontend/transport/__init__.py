"""What all doors share about their connections: TLS, floods, and how long a client may keep the server waiting."""
