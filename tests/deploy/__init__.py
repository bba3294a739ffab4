"""Containers without a container engine: files linted and validated, and what the Dockerfile says done by hand."""
