"""Write a capture as a Perfetto trace for ui.perfetto.dev and trace_processor (docs/how-to/perfetto.md)."""
