"""Training: what a run consists of, its loop, its folder and its curves."""
