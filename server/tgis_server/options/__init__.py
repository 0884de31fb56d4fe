"""Every launch option, its type, default and check."""
