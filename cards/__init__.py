"""The Jinja templates of what is written for people: the model card."""
