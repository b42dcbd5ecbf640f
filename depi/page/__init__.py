"""Web pages of one file: their common style, script, and how they are put together."""
