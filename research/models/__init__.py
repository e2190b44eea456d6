"""Architectures, one family per file, behind one registry."""
