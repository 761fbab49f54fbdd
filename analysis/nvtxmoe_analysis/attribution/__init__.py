"""Place every GPU operation in its step, layer and phase, and add the times up."""
