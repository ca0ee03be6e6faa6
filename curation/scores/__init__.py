"""Scores of clips: what a scorer is, one file per scorer, and the CLIP embedder that several of them share."""
