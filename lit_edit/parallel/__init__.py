"""Processes that share one stream: how they start, talk, agree, and hold parts of a model."""
