"""The Jinja templates of model card, data card and report."""
