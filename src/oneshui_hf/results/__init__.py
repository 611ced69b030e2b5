"""What was measured, for people to read: columns, means over seeds, tables as text, figures."""
