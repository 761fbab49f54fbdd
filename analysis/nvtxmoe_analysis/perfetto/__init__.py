"""Results as a Perfetto trace: what ui.perfetto.dev and trace_processor open. docs/perfetto.md."""
