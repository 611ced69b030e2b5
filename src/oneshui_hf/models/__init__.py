"""Image classifiers: loading, saving, what they take in, what they say, and what lies before their head."""
