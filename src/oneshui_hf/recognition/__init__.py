"""Identification of the person on a photo: face encoders, and matching of face embeddings with the templates of enrolled people."""
