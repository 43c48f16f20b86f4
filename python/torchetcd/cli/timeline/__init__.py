"""The timeline of a run, as a table and as pictures."""
