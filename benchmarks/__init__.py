"""Speed, measured side by side with the plain way; see ``docs/speed.md``."""
