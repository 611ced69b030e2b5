"""A page in the browser for one photo: who is known, what forgetting changes, what it costs the others. `oneshui app RUN` serves it."""
