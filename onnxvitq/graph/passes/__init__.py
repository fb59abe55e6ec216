"""The passes that bring a graph to canonical form: each a function ``graph -> number of edits``."""
