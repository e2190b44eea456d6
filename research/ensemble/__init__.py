"""Ensembles of trials that are trained already, put together from their saved predictions."""
