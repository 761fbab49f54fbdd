"""Begin capture in a process: settings, session, the watch for vLLM."""
