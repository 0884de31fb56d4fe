"""Every failure that ends a start or a running server."""
