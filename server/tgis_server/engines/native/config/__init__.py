"""Reading a model's config.json: typed values, and the parts that families share. Imports no torch."""
