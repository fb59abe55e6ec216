"""The command line: ``main`` runs one command, each in a module of its own. No logic lives here."""
