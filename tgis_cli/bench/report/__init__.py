"""Results for people and programs: tables, CSV, Markdown, one HTML page."""
