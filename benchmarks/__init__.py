"""Measurements that are run by hand, against plain loops and against other detectors."""
