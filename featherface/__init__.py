"""FeatherFace: a face detector with at most 250,000 parameters."""
