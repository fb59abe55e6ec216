"""One step a module; a step that edits graphs is a folder that keeps its choice and its rewrite together."""
