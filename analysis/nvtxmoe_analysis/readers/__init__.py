"""Open an input (a report, an export, a session) and read its tables as they are."""
