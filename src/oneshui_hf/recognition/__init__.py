"""Finding out who is on a photo: face encoders, and matching of face embeddings against enrolled people."""
