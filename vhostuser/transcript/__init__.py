"""Conversations as data: what was said, passed and written, to be kept, compared and played again."""
