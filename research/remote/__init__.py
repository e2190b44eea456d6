"""Runs in object stores: `--workdir=s3://bucket/runs/x`."""
