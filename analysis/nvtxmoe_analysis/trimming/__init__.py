"""Write an export that holds only what the analysis needs, fit for sharing."""
