"""Every metric, and the text in which Prometheus reads them."""
