"""The parts of an audit: models of any origin, photos of candidates, findings, and their page."""
