"""Metrics, thresholds, calibration, statistics and baselines, all over saved predictions."""
