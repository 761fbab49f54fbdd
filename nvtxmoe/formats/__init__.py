"""The formats that capture writes and the analysis reads: payload schema, word form, journal."""
