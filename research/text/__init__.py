"""Captions: from text to token ids, and from token ids to features."""
