"""Connection handling shared by all doors: TLS, flood protection, and limits on waiting for clients."""
