"""What every room speaks: errors, options, number formats, layers, plans, statistics; nothing here opens a session."""
